/**
 * `kelpie completions`: scripts that teach a shell to complete this command line.
 *
 * They are made from the tree of commands, so they know what it knows. Names of disks, snapshots and nodes are asked of
 * `kelpie disk list --names` and the like while one types; without an agent there are none to complete.
 *
 *     commands  options  values: choices · files · directories · names of disks, snapshots and nodes
 *
 * @module
 */
import { Argument, type CommandUnknownOpts } from "@commander-js/extra-typings";
import { type AnyCommand, type CommandContext, examples } from "./context.ts";
import { HELP } from "./help_command.ts";

/** Shells that there are scripts for. */
export const SHELLS = ["bash", "zsh", "fish"] as const;
/** One of {@linkcode SHELLS}. */
export type Shell = typeof SHELLS[number];

/** Names that are asked for, and the commands that tell them. */
const NAME_COMMANDS = {
  "disk": "disk list --names",
  "node": "node list --names",
  "snapshot": "disk snapshot list --names",
  "deleted": "disk trash --names",
} as const;
type NameKind = keyof typeof NAME_COMMANDS;

/** What can stand at a place. */
type Value =
  | { readonly kind: "none" }
  | { readonly kind: NameKind }
  /** A disk, or a snapshot. */
  | { readonly kind: "source" }
  /** A disk's name, an `@`, and something new. */
  | { readonly kind: "new-snapshot" }
  | { readonly kind: "file" }
  | { readonly kind: "directory" }
  | { readonly kind: "choice"; readonly choices: readonly string[] };

interface OptionNode {
  /** `--json`, `-h`. */
  readonly flags: readonly string[];
  readonly description: string;
  /** null for an option without a value. */
  readonly value: Value | null;
}

interface ArgumentNode {
  readonly value: Value;
  readonly isVariadic: boolean;
}

/** One command, and what may follow it. */
interface CommandNode {
  /** Without the program's own name: `disk create`. */
  readonly path: string;
  readonly name: string;
  readonly description: string;
  readonly options: readonly OptionNode[];
  readonly args: readonly ArgumentNode[];
  readonly children: readonly CommandNode[];
}

/** Adds `completions`. */
export function addCompletionsCommand(program: AnyCommand, context: CommandContext): void {
  program.command("completions")
    .summary("print a completion script for a shell")
    .description("Prints a script that teaches a shell to complete kelpie's commands.")
    .addArgument(new Argument("<shell>", "the shell").choices(SHELLS))
    .addHelpText(
      "after",
      examples(
        "source <(kelpie completions bash)",
        "kelpie completions zsh > ~/.zfunc/_kelpie",
        "kelpie completions fish > ~/.config/fish/completions/kelpie.fish",
      ),
    )
    .action((shell) => context.terminal.print(completionScript(program, shell)));
}

/**
 * Makes a script.
 *
 * @param program the root of the tree
 */
export function completionScript(program: CommandUnknownOpts, shell: Shell): string {
  const root = nodeOf(program, "", []);
  switch (shell) {
    case "bash":
      return bashScript(root);
    case "zsh":
      return zshScript(root);
    case "fish":
      return fishScript(root);
  }
}

function nodeOf(
  command: CommandUnknownOpts,
  path: string,
  inherited: readonly OptionNode[],
): CommandNode {
  const help = command.createHelp();
  const own = help.visibleOptions(command).map((option): OptionNode => ({
    flags: [option.long, option.short].filter((flag) => flag !== undefined),
    description: option.description,
    value: option.required || option.optional
      ? valueOf(/[<[]([\w-]+)/.exec(option.flags)?.[1] ?? "", option.argChoices)
      : null,
  }));
  // The program's own options work everywhere, but --version.
  const shared = path === "" ? own.filter(({ flags }) => flags[0] !== "--version") : inherited;
  const isNew = ({ flags }: OptionNode) => !own.some((option) => option.flags[0] === flags[0]);
  return {
    path,
    name: command.name(),
    description: help.subcommandDescription(command),
    options: [...own, ...inherited.filter(isNew)],
    args: command.registeredArguments.map((argument) => ({
      value: valueOf(argument.name(), argument.argChoices),
      isVariadic: argument.variadic,
    })),
    // `help` would need all names again behind it; --help, which does the same, is completed everywhere.
    children: command.commands.filter((child) => child.name() !== HELP).map((child) =>
      nodeOf(child, `${path} ${child.name()}`.trim(), shared)
    ),
  };
}

/** What a value is follows from its name in the command's usage. */
function valueOf(name: string, choices: readonly string[] | undefined): Value {
  if (choices !== undefined) return { kind: "choice", choices };
  if (["name", "disk"].includes(name)) return { kind: "disk" };
  if (isNameKind(name) || name === "new-snapshot" || name === "source") return { kind: name };
  if (["file", "path"].includes(name)) return { kind: "file" };
  if (name === "dir") return { kind: "directory" };
  return { kind: "none" };
}

function isNameKind(name: string): name is NameKind {
  return Object.hasOwn(NAME_COMMANDS, name);
}

const NAME_KINDS = Object.keys(NAME_COMMANDS) as NameKind[];

function allNodes(node: CommandNode): CommandNode[] {
  return [node, ...node.children.flatMap(allNodes)];
}

/** A word for a POSIX shell: no word of ours has a single quote in it, descriptions may. */
function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

// bash ------------------------------------------------------------------------------------------

function bashScript(root: CommandNode): string {
  const nodes = allNodes(root);
  const valued = nodes.flatMap(({ options }) => options).filter(({ value }) => value !== null);
  const flags = [...new Set(valued.flatMap((option) => option.flags))];
  return `# bash completion for kelpie: source <(kelpie completions bash)

# An @ would end a word, and DISK@NAME is one.
COMP_WORDBREAKS=\${COMP_WORDBREAKS//@/}

# _kelpie_names WHAT: names of the disks, snapshots or nodes that there are
_kelpie_names() {
  local run_dir=() command=()
  local i
  case $1 in
${NAME_KINDS.map((kind) => `    ${kind}) command=(${NAME_COMMANDS[kind]}) ;;`).join("\n")}
  esac
  for ((i = 1; i < COMP_CWORD - 1; i++)); do
    [[ \${COMP_WORDS[i]} == --run-dir ]] && run_dir=(--run-dir "\${COMP_WORDS[i + 1]}")
  done
  "\${COMP_WORDS[0]}" "\${run_dir[@]}" "\${command[@]}" 2>/dev/null
}

# _kelpie_values VALUE: what can stand for it
_kelpie_values() {
  case $1 in
    new-snapshot)
      compopt -o nospace 2>/dev/null
      COMPREPLY=($(compgen -S @ -W "$(_kelpie_names disk)" -- "$current"))
      ;;
    source)
      COMPREPLY=($(compgen -W "$(_kelpie_names disk) $(_kelpie_names snapshot)" -- "$current"))
      ;;
    ${NAME_KINDS.join(" | ")}) COMPREPLY=($(compgen -W "$(_kelpie_names "$1")" -- "$current")) ;;
    file)
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -f -- "$current")
      ;;
    directory)
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -d -- "$current")
      ;;
    choice:*) COMPREPLY=($(compgen -W "\${1#choice:}" -- "$current")) ;;
  esac
}

_kelpie() {
  local current=\${COMP_WORDS[COMP_CWORD]} previous=\${COMP_WORDS[COMP_CWORD - 1]}
  local path= position=0 word i
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=\${COMP_WORDS[i]}
    case $word in
      ${flags.join(" | ")})
        ((i++))
        continue
        ;;
      -?*) continue ;;
    esac
    case "$path $word" in
${
    nodes.slice(1).map(({ path }) => {
      const parent = path.includes(" ") ? path.slice(0, path.lastIndexOf(" ")) : "";
      return `      ${quoted(`${parent} ${path.slice(parent.length).trim()}`)}) path=${
        quoted(path)
      } ;;`;
    }).join("\n")
  }
      *) ((position++)) ;;
    esac
  done
  case "$path $previous" in
${
    nodes.flatMap(({ path, options }) =>
      options.filter(({ value }) => value !== null).map((option) =>
        `    ${option.flags.map((flag) => quoted(`${path} ${flag}`)).join(" | ")})\n` +
        `      _kelpie_values ${bashValue(option.value!)}\n      return\n      ;;`
      )
    ).join("\n")
  }
  esac
  if [[ $current == -* ]]; then
    case $path in
${
    nodes.map(({ path, options }) =>
      `      ${quoted(path)}) COMPREPLY=($(compgen -W ${
        quoted(options.flatMap((option) => option.flags).join(" "))
      } -- "$current")) ;;`
    ).join("\n")
  }
    esac
    return
  fi
  case "$path $position" in
${
    nodes.flatMap(({ path, children, args }) => [
      ...(children.length > 0
        ? [bashPlace(`${path} 0`, { kind: "choice", choices: children.map(({ name }) => name) })]
        : []),
      ...args.map(({ value, isVariadic }, index) =>
        bashPlace(`${path} ${index}`, value, isVariadic ? `${path} ` : undefined)
      ),
    ]).join("\n")
  }
  esac
}

complete -F _kelpie kelpie
`;
}

/** One place for an argument; `prefix` makes it stand for all later places as well. */
function bashPlace(place: string, value: Value, prefix?: string): string {
  const pattern = prefix === undefined ? quoted(place) : `${quoted(prefix)}*`;
  return `    ${pattern}) _kelpie_values ${bashValue(value)} ;;`;
}

function bashValue(value: Value): string {
  return quoted(value.kind === "choice" ? `choice:${value.choices.join(" ")}` : value.kind);
}

// zsh -------------------------------------------------------------------------------------------

function zshScript(root: CommandNode): string {
  return `#compdef kelpie
# zsh completion for kelpie: kelpie completions zsh > ~/.zfunc/_kelpie

_kelpie_names() {
  local -a run_dir names
  local at=\${words[(I)--run-dir]}
  ((at > 0 && at < $#words)) && run_dir=(--run-dir "\${words[at + 1]}")
  names=("\${(@f)$(kelpie "\${run_dir[@]}" \${=2} 2>/dev/null)}")
  compadd -S "$1" -a names
}

${
    NAME_KINDS.map((kind) =>
      `_kelpie_${kind}_names() {\n  _kelpie_names ' ' ${quoted(NAME_COMMANDS[kind])}\n}`
    ).join("\n\n")
  }

_kelpie_source_names() {
  _kelpie_disk_names
  _kelpie_snapshot_names
}

_kelpie_new-snapshot_names() {
  _kelpie_names @ ${quoted(NAME_COMMANDS.disk)}
}

${allNodes(root).map(zshFunction).join("\n\n")}

if [[ $funcstack[1] == _kelpie ]]; then
  _kelpie "$@"
else
  compdef _kelpie kelpie
fi
`;
}

function zshName(path: string): string {
  return `_kelpie${path === "" ? "" : `_${path.replaceAll(" ", "_")}`}`;
}

function zshFunction({ path, options, args, children }: CommandNode): string {
  const specs = options.flatMap(({ flags, description, value }) =>
    flags.map((flag) => {
      const text = description.replaceAll(/[\[\]:\\]/g, "\\$&");
      return quoted(`${flag}[${text}]${value === null ? "" : `:value:${zshAction(value)}`}`);
    })
  );
  if (children.length === 0) {
    const places = args.map(({ value, isVariadic }, index) =>
      quoted(`${isVariadic ? "*" : index + 1}:argument:${zshAction(value)}`)
    );
    return `${zshName(path)}() {
  _arguments -s \\
    ${[...specs, ...places].join(" \\\n    ")}
}`;
  }
  return `${zshName(path)}() {
  local curcontext=$curcontext state line
  local -A opt_args
  _arguments -C -s \\
    ${[...specs, quoted("1:command:->command"), quoted("*::argument:->argument")].join(" \\\n    ")}
  case $state in
    command)
      local -a commands=(
${
    children.map(({ name, description }) =>
      `        ${quoted(`${name}:${description.replaceAll(":", "\\:")}`)}`
    ).join("\n")
  }
      )
      _describe command commands
      ;;
    argument)
      case $line[1] in
${children.map((child) => `        ${child.name}) ${zshName(child.path)} ;;`).join("\n")}
      esac
      ;;
  esac
}`;
}

function zshAction(value: Value): string {
  switch (value.kind) {
    case "disk":
    case "node":
    case "snapshot":
    case "deleted":
    case "source":
    case "new-snapshot":
      return `_kelpie_${value.kind}_names`;
    case "file":
      return "_files";
    case "directory":
      return "_files -/";
    case "choice":
      return `(${value.choices.join(" ")})`;
    case "none":
      return "";
  }
}

// fish ------------------------------------------------------------------------------------------

function fishScript(root: CommandNode): string {
  const nodes = allNodes(root);
  const valued = nodes.flatMap(({ options }) => options).filter(({ value }) => value !== null);
  const flags = [...new Set(valued.flatMap((option) => option.flags))];
  return `# fish completion for kelpie: kelpie completions fish > ~/.config/fish/completions/kelpie.fish

function __kelpie_words
    # The words so far without options and their values.
    set -l skip 0
    for word in (commandline -opc)[2..-1]
        if test $skip = 1
            set skip 0
        else if contains -- $word ${flags.join(" ")}
            set skip 1
        else if not string match -q -- '-*' $word
            echo $word
        end
    end
end

# __kelpie_at COUNT WORD...: the words begin so, and COUNT arguments follow; COUNT may be "any"
function __kelpie_at
    set -l words (__kelpie_words)
    set -l path $argv[2..-1]
    set -l depth (count $path)
    test (count $words) -ge $depth; or return 1
    if test $depth -gt 0
        test "$words[1..$depth]" = "$path"; or return 1
    end
    test $argv[1] = any; or test (math (count $words) - $depth) -eq $argv[1]
end

function __kelpie_names
    set -l words (commandline -opc)
    set -l run_dir
    if set -l at (contains -i -- --run-dir $words)
        set run_dir --run-dir $words[(math $at + 1)]
    end
    kelpie $run_dir $argv 2>/dev/null
end

complete -c kelpie -f
${nodes.flatMap(fishLines).join("\n")}
`;
}

function fishLines({ path, options, args, children }: CommandNode): string[] {
  const at = (count: string | number) => `-n ${fishQuoted(`__kelpie_at ${count} ${path}`.trim())}`;
  return [
    ...children.map(({ name, description }) =>
      `complete -c kelpie ${at(0)} -a ${name} -d ${fishQuoted(description)}`
    ),
    ...options.map(({ flags, description, value }) => {
      const names = flags.map((flag) =>
        flag.startsWith("--") ? `-l ${flag.slice(2)}` : `-s ${flag.slice(1)}`
      );
      // An option of a command with subcommands is for the command itself.
      const place = at(children.length > 0 ? 0 : "any");
      const takes = value === null ? "" : ` -r${fishValue(value)}`;
      return `complete -c kelpie ${place} ${names.join(" ")}${takes} -d ${fishQuoted(description)}`;
    }),
    ...args.map(({ value, isVariadic }, index) => {
      const values = fishValue(value);
      return values === "" ? "" : `complete -c kelpie ${at(isVariadic ? "any" : index)}${values}`;
    }).filter((line) => line !== ""),
  ];
}

function fishValue(value: Value): string {
  switch (value.kind) {
    case "disk":
    case "node":
    case "snapshot":
    case "deleted":
      return ` -a '(__kelpie_names ${NAME_COMMANDS[value.kind]})'`;
    case "source":
      return ` -a '(__kelpie_names ${NAME_COMMANDS.disk}; __kelpie_names ${NAME_COMMANDS.snapshot})'`;
    case "new-snapshot":
      return ` -a '(__kelpie_names ${NAME_COMMANDS.disk})@'`;
    case "file":
      return " -F";
    case "directory":
      return " -a '(__fish_complete_directories)'";
    case "choice":
      return ` -a ${fishQuoted(value.choices.join(" "))}`;
    case "none":
      return "";
  }
}

function fishQuoted(text: string): string {
  return `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
}

/**
 * Checks that a request's body has the shape that the API describes: types, required and unknown
 * fields, words from a list. Ranges of values are left to the map, which knows them better and says
 * more about them. Pure.
 *
 * Invariants: what passes has no field that the schema does not name; a type that is not among the
 * seven that requests use fits nothing.
 *
 * @module
 */

import { suggest } from "../config.ts";
import type { ControlError } from "../map/errors.ts";
import type { Schema } from "./openapi.ts";

const REFERENCE = "#/components/schemas/";

/**
 * Says what is wrong with the shape of a value.
 *
 * @param value anything that JSON can say
 * @param schema of the value
 * @param schemas to which `$ref` refers
 * @returns null when it fits, else an error with code `invalid` that names the field
 */
export function checkShape(
  value: unknown,
  schema: Schema,
  schemas: Readonly<Record<string, Schema>>,
): ControlError | null {
  return check(value, schema, "", schemas);
}

function check(
  value: unknown,
  schema: Schema,
  path: string,
  schemas: Readonly<Record<string, Schema>>,
): ControlError | null {
  if (schema.$ref !== undefined) {
    return check(value, schemas[schema.$ref.slice(REFERENCE.length)], path, schemas);
  }
  if (!isType(value, schema.type)) {
    return invalid(`${nameOf(path)} must be ${typeText(schema.type)}, not ${show(value)}`);
  }
  if (schema.enum !== undefined && !schema.enum.includes(value as string)) {
    const meant = suggest(value as string, schema.enum);
    return invalid(
      `${nameOf(path)} is ${show(value)}; it can be ${schema.enum.join(", ")}`,
      meant === null ? undefined : `did you mean '${meant}'?`,
    );
  }
  if (schema.type === "array") return checkItems(value as unknown[], schema, path, schemas);
  return schema.type === "object"
    ? checkFields(value as Record<string, unknown>, schema, path, schemas)
    : null;
}

function checkItems(
  values: readonly unknown[],
  { items }: Schema,
  path: string,
  schemas: Readonly<Record<string, Schema>>,
): ControlError | null {
  for (const [index, value] of values.entries()) {
    const error = check(value, items ?? {}, join(path, String(index)), schemas);
    if (error !== null) return error;
  }
  return null;
}

function checkFields(
  value: Record<string, unknown>,
  schema: Schema,
  path: string,
  schemas: Readonly<Record<string, Schema>>,
): ControlError | null {
  const { properties = {}, required = [], additionalProperties = false } = schema;
  const known = Object.keys(properties);
  const keys = Object.keys(value);
  if (keys.length < (schema.minProperties ?? 0)) {
    return invalid(`${nameOf(path)} is empty`, `give one of ${known.join(", ")}`);
  }
  const missing = required.find((key) => !keys.includes(key));
  if (missing !== undefined) return invalid(`${nameOf(join(path, missing))} is not given`);
  for (const key of keys) {
    const inner = known.includes(key) ? properties[key] : additionalProperties;
    if (typeof inner === "boolean") return unknownField(join(path, key), key, known);
    const error = check(value[key], inner, join(path, key), schemas);
    if (error !== null) return error;
  }
  return null;
}

function unknownField(path: string, key: string, known: readonly string[]): ControlError {
  const meant = suggest(key, known);
  return invalid(
    `${nameOf(path)} is not known`,
    meant === null ? `the fields are ${known.join(", ")}` : `did you mean '${meant}'?`,
  );
}

function isType(value: unknown, type: Schema["type"]): boolean {
  if (typeof type === "object") return type.some((each) => isType(value, each));
  switch (type) {
    case "null":
      return value === null;
    case "number":
      return Number.isFinite(value);
    case "object":
      return typeof value === "object" && value !== null && !Array.isArray(value);
    case "array":
      return Array.isArray(value);
    case "integer":
      return Number.isSafeInteger(value);
    case "string":
      return typeof value === "string";
    case "boolean":
      return typeof value === "boolean";
    default:
      return false;
  }
}

function join(path: string, key: string): string {
  return path === "" ? key : `${path}.${key}`;
}

function nameOf(path: string): string {
  return path === "" ? "the body" : `the field ${show(path)}`;
}

/** `an integer`, `a number or null`. */
function typeText(type: Schema["type"]): string {
  const types = typeof type === "object" ? type : [String(type)];
  return types.map((each) => each === "null" ? each : article(each)).join(" or ");
}

function article(type: string): string {
  return `${/^[aeiou]/.test(type) ? "an" : "a"} ${type}`;
}

function show(value: unknown): string {
  const text = JSON.stringify(value) ?? "nothing";
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}

function invalid(message: string, hint?: string): ControlError {
  return hint === undefined ? { code: "invalid", message } : { code: "invalid", message, hint };
}

/**
 * What is to be known of a guest that does not answer: which of its tasks wait for a disk, and how its rings stand.
 *
 *     break on the console, then `w`   the kernel prints its blocked tasks (admin-guide/sysrq.rst)
 *     x-query-virtio-vhost-queue-status   where in the guest's memory a ring is
 *     xp                                  the four indices in there
 *
 * A ring whose `available` is ahead of its `used` has requests that the back end has not answered; where the back end has nothing
 * under way it has missed a kick. One where they are equal, but `used` is ahead of what the driver wanted to be called for, has missed a call.
 * `x-query-virtio-queue-status` would not do: it asks the back end for the ring's base, which stops the ring.
 *
 * @module
 */

/** The parts of a guest that are asked. */
export interface StandingGuest {
  /** Runs a command of QEMU's monitor. */
  qmp(command: string, args?: Record<string, unknown>): Promise<unknown>;
  /** Types on the guest's console. */
  type(text: string): Promise<void>;
  /** QEMU's devices that are vhost-user disks. */
  readonly disks: readonly { readonly id: string; readonly queues: number }[];
}

/** How long the kernel may take to print, in milliseconds. */
const PRINTING_MS = 2000;

interface RingStatus {
  readonly num: number;
  readonly "avail-phys": number;
  readonly "used-phys": number;
}

/**
 * Has the kernel print its blocked tasks to the console, and reads the rings.
 *
 * @returns a line for each ring, or for what could not be had; never rejects
 */
export async function describeStandstill(guest: StandingGuest): Promise<string> {
  const lines: string[] = [];
  try {
    await guest.qmp("human-monitor-command", { "command-line": "chardev-send-break console" });
    await guest.type("w");
    await new Promise((resolve) => setTimeout(resolve, PRINTING_MS));
    const { status } = await guest.qmp("query-status") as { status: string };
    lines.push(`QEMU is ${status}`);
    for (const { id, queues } of guest.disks) {
      for (let queue = 0; queue < queues; queue++) lines.push(await describeRing(guest, id, queue));
    }
  } catch (error) {
    lines.push(`no more can be said: ${(error as Error).message}`);
  }
  return lines.join("\n");
}

async function describeRing(guest: StandingGuest, id: string, queue: number): Promise<string> {
  const path = `/machine/peripheral/${id}/virtio-backend`;
  const ring = await guest.qmp("x-query-virtio-vhost-queue-status", { path, queue }) as RingStatus;
  const word = async (address: number): Promise<number> => {
    const command = `xp /1hx 0x${address.toString(16)}`;
    const line = await guest.qmp("human-monitor-command", { "command-line": command });
    return Number(/: *(0x[0-9a-f]+)/.exec(String(line))?.[1]);
  };
  const { num, "avail-phys": available, "used-phys": used } = ring;
  const [availableIndex, usedIndex, usedEvent, availableEvent] = await Promise.all([
    word(available + 2),
    word(used + 2),
    word(available + 4 + 2 * num),
    word(used + 4 + 8 * num),
  ]);
  return `ring ${queue} of ${id}: available ${availableIndex} (kick wanted at ${availableEvent}), ` +
    `used ${usedIndex} (call wanted at ${usedEvent}), of ${num}`;
}

/**
 * A first-in first-out list of operations, linked through their `next`: nothing is allocated.
 *
 * @module
 */
import type { Operation } from "./operation.ts";

/** See the head of the file. An operation is in one list at a time. */
export class OperationList {
  /** The oldest. */
  first: Operation | null = null;
  #last: Operation | null = null;
  /** Operations in the list. */
  count = 0;

  /** Appends one. */
  push(operation: Operation): void {
    operation.next = null;
    if (this.#last === null) this.first = operation;
    else this.#last.next = operation;
    this.#last = operation;
    this.count++;
  }

  /** Takes the oldest; there must be one. */
  shift(): Operation {
    const operation = this.first!;
    this.first = operation.next;
    if (this.first === null) this.#last = null;
    operation.next = null;
    this.count--;
    return operation;
  }

  /** Puts one back in front. */
  unshift(operation: Operation): void {
    operation.next = this.first;
    this.first = operation;
    if (this.#last === null) this.#last = operation;
    this.count++;
  }

  /** Puts all of `before` in front of what is here. */
  prepend(before: OperationList): void {
    if (before.first === null) return;
    before.#last!.next = this.first;
    if (this.#last === null) this.#last = before.#last;
    this.first = before.first;
    this.count += before.count;
    before.first = before.#last = null;
    before.count = 0;
  }
}

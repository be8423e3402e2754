import type { Sequence } from "./sequence.ts";

/** Sequences in order of arrival. Appending and removing are O(1); a sequence is in one list at most. */
export class SequenceList {
  first: Sequence | undefined;
  last: Sequence | undefined;
  size = 0;

  /** Looks for the place from the back: for sequences among the latest to arrive. */
  insertFromBack(sequence: Sequence): void {
    let previous = this.last;
    while (previous && previous.ordinal > sequence.ordinal) previous = previous.previous;
    this.#link(previous, sequence, previous ? previous.next : this.first);
  }

  /** Looks for the place from the front: for sequences among the earliest to arrive. */
  insertFromFront(sequence: Sequence): void {
    let next = this.first;
    while (next && next.ordinal < sequence.ordinal) next = next.next;
    this.#link(next ? next.previous : this.last, sequence, next);
  }

  remove(sequence: Sequence): void {
    const { previous, next } = sequence;
    if (previous) previous.next = next;
    else this.first = next;
    if (next) next.previous = previous;
    else this.last = previous;
    sequence.previous = undefined;
    sequence.next = undefined;
    this.size--;
  }

  /** The sequence at hand may be removed while iterating. */
  *[Symbol.iterator](): Generator<Sequence> {
    for (let sequence = this.first; sequence; ) {
      const { next } = sequence;
      yield sequence;
      sequence = next;
    }
  }

  #link(previous: Sequence | undefined, sequence: Sequence, next: Sequence | undefined): void {
    sequence.previous = previous;
    sequence.next = next;
    if (previous) previous.next = sequence;
    else this.first = sequence;
    if (next) next.previous = sequence;
    else this.last = sequence;
    this.size++;
  }
}

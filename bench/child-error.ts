import { OctavoError } from "../src/base/errors.ts";

/** A process that a benchmark runs has failed: its complaint and its exit code are the benchmark's. */
export class ChildError extends OctavoError {
  readonly code = "child_failed";

  constructor(
    /** Of standard error, with the program's name where its lines begin, or without. */
    complaint: string,
    readonly exitCode: number,
  ) {
    super(complaint.trim().replaceAll(/^octavo: /gm, ""));
  }
}

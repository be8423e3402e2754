import type { Backend } from "../backend.ts";
import { CpuBackend } from "../cpu/cpu-backend.ts";
import type { CapturedStep } from "./captured-step.ts";

/** Methods of a backend that give nothing back. */
type Procedure = {
  [Name in keyof Backend]-?: Required<Backend>[Name] extends (...operands: never[]) => infer Result
    ? undefined extends Result
      ? Name
      : never
    : never;
}[keyof Backend];

/** Those that no step captures: what is no op, what ranks have alone, and what is made of other ops. */
type NeverCaptured =
  | ("upload" | "synchronize" | "tuneLinear" | "meetRanks" | "leaveRanks" | "rehearse" | "dispose")
  | ("allReduceAdd" | "gatherColumns" | "drawTokens");

type HostOp = Exclude<Procedure, NeverCaptured>;

/** All of them: a type error here says that one is missing. */
const HOST_OPS: Readonly<Record<HostOp, true>> = {
  ...{ copy: true, fill: true, rotaryTable: true, embedding: true, gatherRows: true, linear: true },
  ...{ experts: true, gateRows: true, deltaNet: true, gateElements: true, rmsNorm: true, layerNorm: true },
  ...{ activation: true, multiplyColumns: true, normProjections: true, attend: true },
  ...{ joinSlots: true, prepareBatch: true, post: true, scatter: true },
  ...{ capLogits: true, processLogits: true, sample: true, logprobs: true },
};

/** The reference backend's ops, which a step can capture as calls. */
export class HostOps extends CpuBackend {
  /** The step that is being captured. */
  protected capturing: CapturedStep | undefined;

  static {
    for (const op of Object.keys(HOST_OPS) as HostOp[]) {
      const compute: (this: HostOps, ...operands: never[]) => void = CpuBackend.prototype[op];
      HostOps.prototype[op] = function (...operands: never[]) {
        this.perform(() => compute.apply(this, operands));
      };
    }
  }

  /** Has the host compute something: now, or whenever the step that is being captured is launched. */
  protected perform(op: () => void): void {
    if (this.capturing === undefined) op();
    else this.capturing.addCall(op);
  }
}

import { afterAll, beforeAll, describe, test } from "bun:test";
import type { Backend } from "../../src/backend/backend.ts";
import { activationCases } from "./cases/activation.ts";
import { attendCases } from "./cases/attend.ts";
import { attendFormsCases } from "./cases/attend-forms.ts";
import { batchCases } from "./cases/batch.ts";
import { capLogitsCases } from "./cases/cap-logits.ts";
import { checksCases } from "./cases/checks.ts";
import { deltaNetCases } from "./cases/delta-net.ts";
import { distributionCases } from "./cases/distribution.ts";
import { drawTokensCases } from "./cases/draw-tokens.ts";
import { expertCases } from "./cases/experts.ts";
import { gatherCases } from "./cases/gather.ts";
import { layersCases } from "./cases/layers.ts";
import { linearCases } from "./cases/linear.ts";
import { logprobsCases } from "./cases/logprobs.ts";
import { memoryCases } from "./cases/memory.ts";
import { normCases } from "./cases/norm.ts";
import { normProjectionsCases } from "./cases/norm-projections.ts";
import { paddingCases } from "./cases/padding.ts";
import { processLogitsCases } from "./cases/process-logits.ts";
import { quantisedLinearCases } from "./cases/quantised-linear.ts";
import { rotaryTableCases } from "./cases/rotary-table.ts";
import { sampleCases } from "./cases/sample.ts";
import { Fixture } from "./fixture.ts";
import { noKnownNormals } from "./random.ts";

/** A method of `Backend` that a case is about. */
export type Op = Exclude<keyof Backend, "name" | "activationDtype">;

/**
 * Where case files register: `body` runs on fresh, guarded memory and fails by throwing. With `size` "grid" the case is of a size
 * at which a GPU's kernels tile, split or share their work in another way.
 */
export type Case = (op: Op, title: string, body: (fixture: Fixture) => void, size?: "grid") => void;

/**
 * The cases that every backend must pass, against naive float64 references.
 * @param grids Whether the backend's work is cut by its size. To loops that take one element after another the sizes "grid"
 * are more of the same, and slow.
 */
export function runContract(name: string, createBackend: () => Backend, grids: boolean): void {
  describe(`${name} backend`, () => {
    let backend: Backend;
    beforeAll(() => {
      backend = createBackend();
    });
    afterAll(() => backend?.dispose());
    const knownNormals = noKnownNormals();

    const addCase: Case = (op, title, body, size) => {
      if (size === "grid" && !grids) return;
      test(`${op}: ${title}`, () => {
        const fixture = new Fixture(backend, knownNormals);
        try {
          body(fixture);
          fixture.checkUntouched();
        } finally {
          fixture.dispose();
        }
      });
    };
    memoryCases(addCase, createBackend);
    deltaNetCases(addCase);
    checksCases(addCase);
    rotaryTableCases(addCase);
    gatherCases(addCase);
    linearCases(addCase);
    quantisedLinearCases(addCase);
    expertCases(addCase);
    normCases(addCase);
    normProjectionsCases(addCase);
    activationCases(addCase);
    attendCases(addCase);
    attendFormsCases(addCase);
    layersCases(addCase);
    batchCases(addCase);
    paddingCases(addCase);
    capLogitsCases(addCase);
    processLogitsCases(addCase);
    sampleCases(addCase);
    drawTokensCases(addCase);
    distributionCases(addCase);
    logprobsCases(addCase);
  });
}

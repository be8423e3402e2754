import { expect, setDefaultTimeout, test } from "bun:test";
import type { Backend } from "../../../src/backend/backend.ts";
import { denseWeight, type Weight } from "../../../src/backend/weight.ts";
import { Experts } from "../../../src/layers/experts.ts";
import { LoadedParameters } from "../../../src/layers/parameters.ts";
import type { WeightScheme } from "../../../src/layers/weight-scheme.ts";
import { FakeTensors } from "../backend/cuda/fake-tensors.ts";

setDefaultTimeout(300_000);

test("the router alone is prepared: experts are multiplied by as they were loaded", () => {
  const { bf16 } = new FakeTensors();
  const names = new Map<Weight, string>();
  const scheme: WeightScheme = {
    weight({ name }) {
      const weight = denseWeight(bf16(1, 1));
      names.set(weight, name);
      return weight;
    },
  };
  const prepared: (string | undefined)[] = [];
  const backend: Pick<Backend, "prepareWeight"> = {
    prepareWeight(weight) {
      prepared.push(names.get(weight));
      return weight;
    },
  };
  const parameters = new LoadedParameters({ rank: 0, size: 1 }, scheme, new Map(), backend as Backend);
  new Experts(parameters, "experts", "mlp", {
    ...{ hiddenSize: 128, count: 4, perToken: 2, intermediateSize: 64, softmaxOver: "all" },
    activation: { kind: "silu" },
  });
  expect([...names.values()]).toEqual(["experts.router", "experts.gateUp", "experts.down"]);
  expect(prepared).toEqual(["experts.router"]);
});

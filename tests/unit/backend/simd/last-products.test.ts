import { afterAll, beforeAll, beforeEach, describe, expect, setDefaultTimeout, spyOn, test } from "bun:test";
import type { LinearFusion } from "../../../../src/backend/backend.ts";
import { floats } from "../../../../src/backend/cpu/host-buffer.ts";
import { SimdBackend } from "../../../../src/backend/simd/simd-backend.ts";
import { ThreadPool } from "../../../../src/backend/simd/thread-pool.ts";
import { Tensor } from "../../../../src/backend/tensor.ts";
import { denseWeight, type Weight } from "../../../../src/backend/weight.ts";
import { Fixture } from "../../../contract/fixture.ts";
import { groupedWeight } from "../../../contract/quantised-weights.ts";

setDefaultTimeout(300_000);

const [M, N, K] = [3, 40, 256];

const WEIGHTS: Readonly<Record<string, (fixture: Fixture) => Weight>> = {
  bfloat16: (fixture) => denseWeight(fixture.input(fixture.random.normals(N * K), [N, K], "bfloat16").tensor),
  "4 bits": (fixture) => groupedWeight(fixture, [N, K], { bits: 4, groupSize: 128, zeros: true }).weight,
};

describe.each(Object.keys(WEIGHTS))("a product by %s like the last one by its weight", (name) => {
  let backend: SimdBackend;
  let fixture: Fixture;
  let weight: Weight;
  let x: Tensor;
  let out: Tensor;
  let fusion: LinearFusion;

  beforeAll(() => {
    backend = new SimdBackend({ threads: 1 });
    fixture = new Fixture(backend);
  });
  afterAll(() => {
    fixture.dispose();
    backend.dispose();
  });
  beforeEach(() => {
    weight = WEIGHTS[name]!(fixture);
    x = fixture.normals([M, K]).tensor;
    out = fixture.output("float32", [M, N]);
    fusion = {
      norm: { weight: fixture.normals([K], 0.3, 1).tensor, eps: 1e-6 },
      bias: fixture.normals([N]).tensor,
      addTo: fixture.normals([M, N]).tensor,
    };
  });

  /** Products are the same when nothing was like them before. */
  function expectAfresh(into: Tensor, input: Tensor, around: LinearFusion): void {
    backend.linear(into, input, weight, around);
    const got = [...floats(into)];
    floats(into).fill(0);
    backend.linear(into, input, { ...weight }, around);
    expect(got).toEqual([...floats(into)]);
  }

  test("is the same tasks, on what its operands hold by then", () => {
    backend.linear(out, x, weight, fusion);
    const [repeat, record] = [spyOn(ThreadPool.prototype, "repeat"), spyOn(ThreadPool.prototype, "record")];
    try {
      for (const tensor of [x, fusion.bias!, fusion.addTo!, fusion.norm!.weight])
        floats(tensor).set(fixture.random.normals(tensor.size));
      backend.linear(out, x, weight, { ...fusion, norm: { ...fusion.norm! } });
      expect([repeat.mock.calls.length, record.mock.calls.length]).toEqual([1, 0]);
    } finally {
      repeat.mockRestore();
      record.mockRestore();
    }
    expectAfresh(out, x, fusion);
  });

  test("is another where an operand is another", () => {
    backend.linear(out, x, weight, fusion);
    const { norm, bias, addTo } = fusion;
    const other = fixture.normals([N]).tensor;
    const others: readonly LinearFusion[] = [
      { bias, addTo },
      { norm: { ...norm!, eps: 0.5 }, bias, addTo },
      { norm: { ...norm!, weight: fixture.normals([K]).tensor }, bias, addTo },
      { norm, addTo },
      { norm, bias: other, addTo },
      { norm, bias },
      { norm, bias, addTo: fixture.normals([M, N]).tensor },
    ];
    const afterIt = (into: Tensor, input: Tensor, around: LinearFusion, first = fusion) => {
      backend.linear(out, x, weight, first);
      expectAfresh(into, input, around);
    };
    for (const around of others) afterIt(out, x, around);
    for (const kind of ["silu", "gelu_tanh", "gelu"] as const)
      afterIt(out, x, { norm, bias, activation: { kind, gated: false } }, { norm, bias });
    afterIt(out, fixture.normals([M, K]).tensor, fusion);
    afterIt(fixture.output("float32", [M, N]), x, fusion);
    afterIt(out.rows(0, 2), x.rows(0, 2), { norm, bias });
  });

  test("finds its scratch memory where it has moved", () => {
    backend.linear(out, x, weight, fusion);
    const many = 50 * M;
    backend.linear(
      fixture.output("float32", [many, N]),
      fixture.normals([many, K]).tensor,
      { ...weight },
      fusion.norm && { norm: fusion.norm },
    );
    // What is where the inputs were must stay.
    const claimed = fixture.normals([M, K]).tensor;
    const before = [...floats(claimed)];
    expectAfresh(out, x, fusion);
    expect([...floats(claimed)]).toEqual(before);
  });

  test("of operands that lie elsewhere copies them again", () => {
    const elsewhere = { ...fusion, bias: hostTensor(fixture, fusion.bias!) };
    backend.linear(out, x, weight, elsewhere);
    floats(elsewhere.bias).fill(7);
    expectAfresh(out, x, elsewhere);
  });
});

/** A copy in memory of the host that kernels do not reach. */
function hostTensor({ backend }: Fixture, tensor: Tensor): Tensor {
  const buffer = backend.allocateShared(tensor.byteLength);
  const copy = new Tensor(buffer, tensor.dtype, tensor.shape);
  floats(copy).set(floats(tensor));
  return copy;
}

import { expect, setDefaultTimeout, test } from "bun:test";
import { CpuBackend } from "../../../src/backend/cpu/cpu-backend.ts";
import { Scratch } from "../../../src/backend/cuda/scratch.ts";
import type { DeviceBuffer } from "../../../src/backend/tensor.ts";
import { Workspace } from "../../../src/backend/workspace.ts";
import { InvariantError } from "../../../src/base/errors.ts";

setDefaultTimeout(300_000);

/** Keeps count of what is alive. */
class CountingBackend extends CpuBackend {
  allocations = 0;
  readonly alive = new Set<DeviceBuffer>();

  override allocate(byteLength: number): DeviceBuffer {
    const buffer = super.allocate(byteLength);
    this.allocations++;
    this.alive.add(buffer);
    const { dispose } = buffer;
    buffer.dispose = () => {
      this.alive.delete(buffer);
      dispose.call(buffer);
    };
    return buffer;
  }

  get aliveBytes(): number {
    return [...this.alive].reduce((sum, { byteLength }) => sum + byteLength, 0);
  }
}

const SIZES = Array.from({ length: 1000 }, (_, i) => 1000 + 100 * i);

test.each([
  ["a workspace", (backend: CountingBackend) => new Workspace(backend)],
  ["scratch memory", (backend: CountingBackend) => new Scratch((bytes) => backend.allocate(bytes))],
] as const)("%s that is asked for ever more allocates a few times, and keeps one buffer", (_name, make) => {
  const backend = new CountingBackend();
  const memory = make(backend);
  const tensorOf = (bytes: number) =>
    memory instanceof Workspace
      ? memory.tensor("x", "uint32", [bytes / 4])
      : memory.tensor("uint32", [bytes / 4]);
  // What is asked for first is likely the largest there is: no more is taken.
  tensorOf(SIZES[0]!);
  expect(backend.aliveBytes).toBe(SIZES[0]!);
  for (const bytes of SIZES) expect(tensorOf(bytes).byteLength).toBe(bytes);
  expect(backend.allocations).toBeLessThan(15);
  expect(backend.alive.size).toBe(1);
  expect(backend.aliveBytes).toBeLessThan(2 * SIZES.at(-1)!);
  backend.dispose();
});

test("a frozen buffer does not grow, others do until they are frozen too", () => {
  const backend = new CpuBackend();
  const workspace = new Workspace(backend);
  const captured = workspace.tensor("captured", "uint32", [100]);
  workspace.freeze();
  expect(workspace.tensor("captured", "uint32", [100]).buffer).toBe(captured.buffer);
  expect(() => workspace.tensor("captured", "uint32", [101])).toThrow(InvariantError);
  workspace.tensor("later", "uint32", [100]);
  expect(workspace.tensor("later", "uint32", [101]).size).toBe(101);
  workspace.freeze();
  expect(() => workspace.tensor("later", "uint32", [1000])).toThrow(InvariantError);
  backend.dispose();
});

test("a name of the same type and shape is the same tensor, until its buffer is another", () => {
  const workspace = new Workspace(new CpuBackend());
  const first = workspace.tensor("a", "float32", [4, 8]);
  expect(workspace.tensor("a", "float32", [4, 8])).toBe(first);
  expect(workspace.tensor("b", "float32", [4, 8])).not.toBe(first);
  for (const [dtype, shape] of [
    ["int32", [4, 8]],
    ["float32", [8, 4]],
    ["float32", [4, 8, 1]],
    ["float32", [4]],
  ] as const) {
    const other = workspace.tensor("a", dtype, shape);
    expect([other.dtype, other.shape]).toEqual([dtype, shape]);
    expect(other.buffer).toBe(first.buffer);
  }
  const { moves } = workspace;
  workspace.tensor("c", "float32", [4000]);
  expect(workspace.moves).toBe(moves);
  const grown = workspace.tensor("a", "float32", [4000]);
  expect(workspace.moves).toBe(moves + 1);
  expect(workspace.tensor("a", "float32", [4, 8]).buffer).toBe(grown.buffer);
  expect(grown.buffer).not.toBe(first.buffer);
});

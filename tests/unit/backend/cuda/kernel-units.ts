import type { ModelShape } from "../../../../src/backend/backend.ts";
import { Compiler } from "../../../../src/backend/cuda/compiler.ts";
import { KERNEL_FOLDER, KernelLibrary } from "../../../../src/backend/cuda/kernel-library.ts";
import { KernelOps } from "../../../../src/backend/cuda/kernel-ops.ts";
import type { KernelUnit } from "../../../../src/backend/cuda/kernel-source.ts";
import { ACTIVATION_CODES } from "../../../../src/backend/cuda/ops/activation.ts";
import { PeerExchange } from "../../../../src/backend/cuda/ops/peer-exchange.ts";
import type { WgmmaLinear, WgmmaShape } from "../../../../src/backend/cuda/ops/wgmma-linear.ts";
import { invariantTile, wgmmaWays } from "../../../../src/backend/cuda/ops/wgmma-tiles.ts";
import type { FloatDType } from "../../../../src/base/dtype.ts";
import type { Context } from "../../../../src/cuda/context.ts";
import type { KernelCompiler } from "../../../../src/cuda/nvrtc.ts";

/** Of Hopper. */
const SHARED = { sharedBytesPerBlock: 227 * 1024, sharedBytesPerSm: 228 * 1024 };

/** What the wrappers compile for a model; they launch nothing here. */
export function unitsOf(dtype: FloatDType, hopper: boolean, shape: ModelShape): KernelUnit[] {
  const unused = () => {
    throw new Error("nothing is launched");
  };
  const buffer = { byteLength: 0, address: 0, dispose: () => {} };
  const memory = { allocate: unused, allocateZeroed: () => buffer, clear: unused };
  const uploads = { upload: unused, encodeTensorMap: unused };
  const ranks = { size: 2, gatherColumns: unused };
  const gpu = { dtype, smCount: 132, ...SHARED, dependentLaunch: hopper, hopper, wholeLayers: true, ranks };
  const options = { ...gpu, ...memory, ...uploads };
  const alone = { ...options, ranks: undefined };
  const compiler = new Compiler({} as KernelCompiler, { sourceFolder: KERNEL_FOLDER, arch: "none" });
  const library = new KernelLibrary({} as Context, compiler);
  const ops = new KernelOps(library, options);
  return [
    ...ops.units(shape),
    ...new KernelOps(library, alone).units(shape),
    ...(ops.wgmmaLinear === undefined ? [] : wgmmaUnits(ops.wgmmaLinear, shape)),
    ...[2, 4, 8].flatMap((size) => new PeerExchange(library, dtype, { rank: 0, size }).units()),
  ];
}

/** One token count of each kind of tile: all of them would take as long to compile as everything else. */
function wgmmaUnits(wgmma: WgmmaLinear, { hiddenSize, intermediateSize }: ModelShape): KernelUnit[] {
  const plain = { norm: false, gated: false, activation: -1, floatOut: false };
  const gate = { outFeatures: 2 * intermediateSize, inFeatures: hiddenSize, norm: true, gated: true };
  const shapes: readonly WgmmaShape[] = [
    { ...plain, ...gate, activation: ACTIVATION_CODES.silu },
    { ...plain, outFeatures: hiddenSize, inFeatures: intermediateSize },
    { ...plain, outFeatures: hiddenSize, inFeatures: intermediateSize, floatOut: true, activation: 1 },
  ];
  return shapes.flatMap((shape) =>
    [16, 128, 256].flatMap((tokens) => {
      const tiles = wgmmaWays(shape, tokens, 132).map(({ tile }) => tile);
      return [...tiles, invariantTile(shape, 132)].flatMap((tile) => wgmma.units(tile, shape));
    }),
  );
}

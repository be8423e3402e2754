import { type DeviceBuffer, Tensor } from "../backend/tensor.ts";
import type { DType } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import type { ParameterSpec } from "../base/parameter-spec.ts";
import type { Shard } from "../base/shard.ts";
import type { WeightScheme } from "./weight-scheme.ts";

/**
 * The source of layers' parameters while they are built. A model is built twice, once to list its parameters and once
 * with those that were loaded, so that a layer says a parameter's name and shape in one place.
 */
export interface Parameters {
  /** The rank that the layers are built for. */
  readonly shard: Shard;
  readonly scheme: WeightScheme;
  /** The parameter that `spec` describes. */
  get(spec: ParameterSpec): Tensor;
}

/** Lists what layers ask for. The tensors that it gives have a shape but no memory. */
export class ParameterList implements Parameters {
  readonly specs: ParameterSpec[] = [];

  constructor(
    readonly shard: Shard,
    readonly scheme: WeightScheme,
  ) {}

  get(spec: ParameterSpec): Tensor {
    this.specs.push(spec);
    return this.placeholder("float32", spec.shape);
  }

  /** A tensor without memory. */
  placeholder(dtype: DType, shape: readonly number[]): Tensor {
    return new Tensor(NOWHERE, dtype, shape);
  }
}

/** The parameters of `ParameterList.specs`, loaded, by Octavo's names. */
export class LoadedParameters implements Parameters {
  constructor(
    readonly shard: Shard,
    readonly scheme: WeightScheme,
    private readonly tensors: ReadonlyMap<string, Tensor>,
  ) {}

  get({ name }: ParameterSpec): Tensor {
    const tensor = this.tensors.get(name);
    invariant(tensor !== undefined, `parameter "${name}" was not loaded`);
    return tensor;
  }
}

const NOWHERE: DeviceBuffer = { byteLength: Number.MAX_SAFE_INTEGER, address: 0, dispose: () => {} };

import type { Backend } from "../backend/backend.ts";
import { type DeviceBuffer, Tensor } from "../backend/tensor.ts";
import type { Weight } from "../backend/weight.ts";
import type { DType } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import type { ParameterSpec } from "../base/parameter-spec.ts";
import type { Shard } from "../base/shard.ts";
import type { MatrixName, MatrixSpec, WeightScheme } from "./weight-scheme.ts";

/**
 * The source of layers' parameters while they are built. A model is built twice, once to list its parameters and once
 * with those that were loaded, so that a layer says a parameter's name and shape in one place.
 */
export interface Parameters {
  /** The rank that the layers are built for. */
  readonly shard: Shard;
  /** The parameter that `spec` describes. */
  get(spec: ParameterSpec): Tensor;
  /** The matrix to multiply by that `spec` describes, in whatever form the checkpoint has it. */
  weight(spec: MatrixSpec): Weight;
  /** See `WeightScheme`. */
  hasHeadCodes(table: MatrixName): boolean;
}

/** Lists what layers ask for. The tensors that it gives have a shape but no memory. */
export class ParameterList implements Parameters {
  readonly specs: ParameterSpec[] = [];
  readonly weights: Weight[] = [];

  constructor(
    readonly shard: Shard,
    private readonly scheme: WeightScheme,
  ) {}

  get(spec: ParameterSpec): Tensor {
    this.specs.push(spec);
    return this.placeholder(spec.dtype ?? "float32", spec.shape);
  }

  weight(matrix: MatrixSpec): Weight {
    const weight = this.scheme.weight(matrix, (spec) => this.get(spec));
    this.weights.push(weight);
    return weight;
  }

  hasHeadCodes(table: MatrixName): boolean {
    return this.scheme.hasHeadCodes?.(table) ?? false;
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
    private readonly scheme: WeightScheme,
    private readonly tensors: ReadonlyMap<string, Tensor>,
    private readonly backend: Backend,
  ) {}

  get({ name }: ParameterSpec): Tensor {
    const tensor = this.tensors.get(name);
    invariant(tensor !== undefined, `parameter "${name}" was not loaded`);
    return tensor;
  }

  weight(matrix: MatrixSpec): Weight {
    const weight = this.scheme.weight(matrix, (spec) => this.get(spec));
    return matrix.experts ? weight : (this.backend.prepareWeight?.(weight) ?? weight);
  }

  hasHeadCodes(table: MatrixName): boolean {
    return this.scheme.hasHeadCodes?.(table) ?? false;
  }
}

const NOWHERE: DeviceBuffer = { byteLength: Number.MAX_SAFE_INTEGER, address: 0, dispose: () => {} };

import type { LayerCache, LmHead, SampleRows, SlotTensors } from "../backend/backend.ts";
import type { DeltaNetShape, StateCache } from "../backend/delta-net.ts";
import type { Tensor } from "../backend/tensor.ts";
import { denseWeight } from "../backend/weight.ts";
import type { FloatDType } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import { Embedding } from "../layers/embedding.ts";
import type { ForwardContext, OpContext } from "../layers/forward-context.ts";
import { Linear } from "../layers/linear.ts";
import { type LayerNorm, RmsNorm } from "../layers/norm.ts";
import { LoadedParameters, ParameterList, type Parameters } from "../layers/parameters.ts";
import {
  type PositionTables,
  queryScaleTable,
  type RopeConfig,
  rotaryDim,
  rotaryTable,
} from "../layers/rotary.ts";
import { LM_HEAD } from "../layers/weight-scheme.ts";
import type { ModelConfig } from "./config.ts";
import { cachedLayersOf, layersWithCache } from "./kv-heads.ts";
import type { CausalLM, ModelDefinition, ModelPart, StateShape } from "./model.ts";
import { TOWERS } from "./text-config.ts";

/** A layer of a decoder. */
export interface DecoderLayer {
  /**
   * Adds what the layer computes to residual[T, H]; stores the tokens' keys and values in `cache`, unless that is another layer's
   * (`ModelConfig.kvSources`), which has.
   */
  forward(context: ForwardContext, residual: Tensor, cache: LayerCache): void;
}

/** A layer that keeps a state of each sequence in place of keys and values. */
export interface RecurrentLayer {
  /** The same in all layers of a model. */
  readonly stateShape: DeltaNetShape;
  /** Adds what the layer computes to residual[T, H]; the rows' states in `cache` go on by their tokens. */
  forward(context: ForwardContext, residual: Tensor, cache: StateCache): void;
}

type AnyLayer = DecoderLayer | RecurrentLayer;

/** A layer's place in the model that it is built for. */
export interface LayerPlace {
  readonly parameters: Parameters;
  readonly index: number;
  /** Octavo's name for it, and the checkpoint's. */
  readonly name: string;
  readonly source: string;
  readonly tables: PositionTables;
}

/** Traits of a family outside of its layers. */
export interface DecoderOptions {
  /** The checkpoint's names. Default: Llama's. */
  readonly names?: DecoderNames;
  /** Default: an `RmsNorm` of the config's epsilon. */
  readonly createNorm?: (parameters: Parameters, name: string, source: string) => RmsNorm | LayerNorm;
  /** Multiplies embeddings, with activations of this dtype. Default 1. */
  readonly embeddingScale?: (dtype: FloatDType) => number;
  /** Makes what layers read besides the residual stream. Default: nothing. */
  readonly createInputs?: (parameters: Parameters) => LayerInputs;
  /** Tensors that are no parameters. */
  readonly ignored?: readonly RegExp[];
}

/** What layers read of a batch's tokens besides the residual stream. */
export interface LayerInputs {
  /** Computes it, from the embeddings that the stream begins with [T, H]; layers find it in the workspace. */
  compute(context: ForwardContext, embedded: Tensor): void;
}

/** Names of a checkpoint's modules, those of layers without their number. */
export interface DecoderNames {
  readonly embedding: string;
  readonly layers: string;
  readonly norm: string;
  readonly head: string;
}

const NAMES: DecoderNames = {
  ...{ embedding: "model.embed_tokens", layers: "model.layers", norm: "model.norm", head: "lm_head" },
};

/**
 * A decoder-only model: token embedding, layers that each add to the residual stream, final norm, LM head (tied to the
 * embedding or its own).
 */
export function defineDecoder(
  config: ModelConfig,
  { shard, scheme }: ModelPart,
  createLayer: (place: LayerPlace) => AnyLayer,
  options: DecoderOptions = {},
): ModelDefinition {
  const { queryScaling, tieWordEmbeddings } = config;
  const { head } = options.names ?? NAMES;
  const create = (parameters: Parameters, tables: readonly PositionTables[]) =>
    new Decoder(config, parameters, tables, createLayer, options);
  const list = new ParameterList(shard, scheme);
  const placeholder = (...shape: number[]) => list.placeholder("float32", shape);
  const { stateShape } = create(
    list,
    layerTables(
      config,
      (rope, headDim) => placeholder(0, rotaryDim(headDim, rope)),
      queryScaling && placeholder(0),
    ),
  );
  return {
    parameters: list.specs,
    matrices: list.weights,
    ignored: [
      /\.rotary_emb\.inv_freq$/,
      ...(tieWordEmbeddings ? [new RegExp(`^${head}\\.weight$`)] : []),
      ...(options.ignored ?? []),
      ...(config.isTextPart ? [TOWERS] : []),
      ...(scheme.ignored ?? []),
    ],
    cachedLayers: cachedLayersOf(config, shard),
    stateShape,
    build: (weights, backend, maxPositions) =>
      create(
        new LoadedParameters(shard, scheme, weights, backend),
        layerTables(
          config,
          (rope, headDim) => rotaryTable(backend, headDim, maxPositions, rope),
          queryScaling && queryScaleTable(backend, maxPositions, queryScaling),
        ),
      ),
  };
}

/** Each layer's tables; layers of one rope, whose heads are alike, share theirs. */
function layerTables(
  { layerRopes, layerKvHeads }: ModelConfig,
  cosSinOf: (rope: RopeConfig, headDim: number) => Tensor,
  queryScales: Tensor | undefined,
): PositionTables[] {
  const headDims = new Map(layerRopes.map((rope, layer) => [rope, layerKvHeads[layer]!.headDim]));
  const tables = new Map(
    [...headDims].flatMap(([rope, dim]) => (rope === undefined ? [] : [[rope, cosSinOf(rope, dim)]])),
  );
  return layerRopes.map((rope) => ({ cosSin: rope && tables.get(rope), queryScales }));
}

class Decoder implements CausalLM {
  readonly #embedding: Embedding;
  readonly stateShape: StateShape | undefined;
  readonly #layers: readonly AnyLayer[];
  /** Of each layer with attention, the number of the cache that it attends to. */
  readonly #caches: readonly number[];
  readonly #inputs: LayerInputs | undefined;
  readonly #norm: RmsNorm | LayerNorm;
  readonly #head: LmHead;

  constructor(
    readonly config: ModelConfig,
    parameters: Parameters,
    tables: readonly PositionTables[],
    createLayer: (place: LayerPlace) => AnyLayer,
    private readonly options: DecoderOptions,
  ) {
    const { vocabSize, hiddenSize, numLayers, rmsNormEps, tieWordEmbeddings } = config;
    const { logitsScaling, logitSoftCap } = config;
    const { names = NAMES, createNorm = rmsNorm } = options;
    this.#embedding = new Embedding(parameters, "embedding", names.embedding, vocabSize, hiddenSize);
    this.#inputs = options.createInputs?.(parameters);
    this.#layers = Array.from({ length: numLayers }, (_, index) => {
      const [name, source] = [`layers.${index}`, `${names.layers}.${index}`];
      return createLayer({ parameters, index, name, source, tables: tables[index]! });
    });
    const recurrent = this.#layers.filter((layer) => "stateShape" in layer);
    const cached = layersWithCache(config);
    this.#caches = config.kvSources.map((source) => cached.indexOf(source));
    this.stateShape = recurrent[0] && { ...recurrent[0].stateShape, numLayers: recurrent.length };
    function rmsNorm(of: Parameters, name: string, source: string): RmsNorm {
      return new RmsNorm(of, name, source, hiddenSize, rmsNormEps);
    }
    this.#norm = createNorm(parameters, "norm", names.norm);
    const table = { source: names.embedding, rows: vocabSize, columns: hiddenSize };
    const weight =
      tieWordEmbeddings && !parameters.hasHeadCodes(table)
        ? denseWeight(this.#embedding.table)
        : new Linear(parameters, LM_HEAD, {
            inputSize: hiddenSize,
            projections: [{ source: tieWordEmbeddings ? names.embedding : names.head, units: vocabSize }],
            ...{ split: "columns", bias: false },
          }).weight;
    const norm =
      logitsScaling === 1
        ? this.#norm
        : new RmsNorm(parameters, "headNorm", names.norm, hiddenSize, rmsNormEps, {
            ...{ scale: 1 / logitsScaling, offset: 0 },
          });
    const { firstToken } = this.#embedding;
    this.#head = {
      weight,
      norm: norm instanceof RmsNorm ? norm : undefined,
      firstToken,
      softCap: logitSoftCap,
    };
  }

  forward(context: ForwardContext): Tensor {
    const { backend, workspace, batch, kvCache, stateCaches = [] } = context;
    const shape = [batch.numTokens, this.config.hiddenSize];
    const residual = workspace.tensor("residual", backend.activationDtype, shape);
    const scale = this.options.embeddingScale?.(residual.dtype as FloatDType);
    this.#embedding.forward(context, residual, batch.tokenIds, scale);
    this.#inputs?.compute(context, residual);
    let recurrent = 0;
    for (const [index, layer] of this.#layers.entries()) {
      if ("stateShape" in layer) layer.forward(context, residual, stateCaches[recurrent++]!);
      else layer.forward(context, residual, kvCache[this.#caches[index]!]!);
    }
    return residual;
  }

  logits(context: OpContext, out: Tensor, hidden: Tensor): void {
    const { backend, workspace } = context;
    const { weight, norm, firstToken, softCap } = this.#head;
    const x = this.#headInput(context, hidden);
    if (firstToken === undefined) backend.linear(out, x, weight, { norm });
    else {
      invariant(backend.gatherColumns !== undefined, "ranks need a backend that gathers from them");
      const part = workspace.tensor("logitsPart", "float32", [hidden.dim(0), weight.shape[0]]);
      backend.linear(part, x, weight, { norm });
      backend.gatherColumns(out, part);
    }
    if (softCap !== undefined) backend.capLogits(out, softCap);
  }

  states(context: OpContext, hidden: Tensor): Tensor {
    if (!(this.#norm instanceof RmsNorm)) return this.#norm.of(context, hidden).x;
    const { backend, workspace } = context;
    const normed = workspace.tensor("states", hidden.dtype, hidden.shape);
    backend.rmsNorm(normed, hidden, this.#norm.weight, this.#norm.eps);
    return normed;
  }

  drawTokens(
    context: OpContext,
    out: Tensor,
    hidden: Tensor,
    logits: Tensor,
    samples: SampleRows,
    slots: SlotTensors,
  ): void {
    const x = this.#headInput(context, hidden);
    context.backend.drawTokens(out, x, this.#head, logits, samples, slots);
  }

  /** The input of the head: the residual stream, normalised where the head has no norm that does so. */
  #headInput(context: OpContext, hidden: Tensor): Tensor {
    return this.#norm instanceof RmsNorm ? hidden : this.#norm.of(context, hidden).x;
  }
}

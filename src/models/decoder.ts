import type { Backend, LayerCache, LmHead, SampleRows, SlotTensors } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import { denseWeight } from "../backend/weight.ts";
import { invariant } from "../base/errors.ts";
import { lengthOf, shareOf } from "../base/shard.ts";
import { Embedding } from "../layers/embedding.ts";
import type { ForwardContext, OpContext } from "../layers/forward-context.ts";
import { Linear } from "../layers/linear.ts";
import { RmsNorm } from "../layers/norm.ts";
import { LoadedParameters, ParameterList, type Parameters } from "../layers/parameters.ts";
import {
  type PositionTables,
  queryScaleTable,
  type RopeConfig,
  rotaryDim,
  rotaryTable,
} from "../layers/rotary.ts";
import type { ModelConfig } from "./config.ts";
import type { CausalLM, KvHeads, ModelDefinition, ModelPart } from "./model.ts";

/** A layer of a decoder. */
export interface DecoderLayer {
  /** Adds what the layer computes to residual[T, H]; stores the tokens' keys and values in `cache`. */
  forward(context: ForwardContext, residual: Tensor, cache: LayerCache): void;
}

/** A layer's place in the model that it is built for. */
export interface LayerPlace {
  readonly parameters: Parameters;
  readonly index: number;
  /** Octavo's name for it, and the checkpoint's. */
  readonly name: string;
  readonly source: string;
  readonly tables: PositionTables;
}

/**
 * A decoder-only model: token embedding, layers that each add to the residual stream, final norm, LM head (tied to the
 * embedding or its own).
 */
export function defineDecoder(
  config: ModelConfig,
  { shard, scheme }: ModelPart,
  createLayer: (place: LayerPlace) => DecoderLayer,
): ModelDefinition {
  const { numLayers, numKvHeads, headDim, queryScaling, tieWordEmbeddings } = config;
  const kvHeads = { numLayers, numKvHeads: lengthOf(shareOf(numKvHeads, shard)), headDim };
  const create = (parameters: Parameters, tables: readonly PositionTables[]) =>
    new Decoder(config, kvHeads, parameters, tables, createLayer);
  const list = new ParameterList(shard, scheme);
  const placeholder = (...shape: number[]) => list.placeholder("float32", shape);
  create(
    list,
    layerTables(config, (rope) => placeholder(0, rotaryDim(headDim, rope)), queryScaling && placeholder(0)),
  );
  return {
    parameters: list.specs,
    matrices: list.weights,
    ignored: [
      /\.rotary_emb\.inv_freq$/,
      ...(tieWordEmbeddings ? [/^lm_head\.weight$/] : []),
      ...(scheme.ignored ?? []),
    ],
    kvHeads,
    build: (weights, backend, maxPositions) =>
      create(
        new LoadedParameters(shard, scheme, weights, backend),
        layerTables(
          config,
          (rope) => rotaryTable(backend, headDim, maxPositions, rope),
          queryScaling && queryScaleTable(backend, maxPositions, queryScaling),
        ),
      ),
  };
}

/** Each layer's tables; layers of one rope share theirs. */
function layerTables(
  { layerRopes }: ModelConfig,
  cosSinOf: (rope: RopeConfig) => Tensor,
  queryScales: Tensor | undefined,
): PositionTables[] {
  const ropes = new Set(layerRopes.filter((rope) => rope !== undefined));
  const tables = new Map([...ropes].map((rope) => [rope, cosSinOf(rope)]));
  return layerRopes.map((rope) => ({ cosSin: rope && tables.get(rope), queryScales }));
}

class Decoder implements CausalLM {
  readonly #embedding: Embedding;
  readonly #layers: readonly DecoderLayer[];
  readonly #head: LmHead;

  constructor(
    readonly config: ModelConfig,
    readonly kvHeads: KvHeads,
    parameters: Parameters,
    tables: readonly PositionTables[],
    createLayer: (place: LayerPlace) => DecoderLayer,
  ) {
    const { vocabSize, hiddenSize, numLayers, rmsNormEps, tieWordEmbeddings } = config;
    this.#embedding = new Embedding(parameters, "embedding", "model.embed_tokens", vocabSize, hiddenSize);
    this.#layers = Array.from({ length: numLayers }, (_, index) => {
      const [name, source] = [`layers.${index}`, `model.layers.${index}`];
      return createLayer({ parameters, index, name, source, tables: tables[index]! });
    });
    const norm = new RmsNorm(parameters, "norm", "model.norm", hiddenSize, rmsNormEps);
    const weight = tieWordEmbeddings
      ? denseWeight(this.#embedding.table)
      : new Linear(parameters, "lmHead", {
          inputSize: hiddenSize,
          projections: [{ source: "lm_head", units: vocabSize }],
          ...{ split: "columns", bias: false },
        }).weight;
    this.#head = { weight, norm, firstToken: this.#embedding.firstToken };
  }

  forward(context: ForwardContext): Tensor {
    const { backend, workspace, batch, kvCache } = context;
    const shape = [batch.numTokens, this.config.hiddenSize];
    const residual = workspace.tensor("residual", backend.activationDtype, shape);
    this.#embedding.forward(context, residual, batch.tokenIds);
    for (const [i, layer] of this.#layers.entries()) layer.forward(context, residual, kvCache[i]!);
    return residual;
  }

  logits({ backend, workspace }: OpContext, out: Tensor, hidden: Tensor): void {
    const { weight, norm, firstToken } = this.#head;
    if (firstToken === undefined) {
      backend.linear(out, hidden, weight, { norm });
      return;
    }
    invariant(backend.gatherColumns !== undefined, "ranks need a backend that gathers from them");
    const part = workspace.tensor("logitsPart", "float32", [hidden.dim(0), weight.shape[0]]);
    backend.linear(part, hidden, weight, { norm });
    backend.gatherColumns(out, part);
  }

  drawTokens(
    backend: Backend,
    out: Tensor,
    hidden: Tensor,
    logits: Tensor,
    samples: SampleRows,
    slots: SlotTensors,
  ): void {
    backend.drawTokens(out, hidden, this.#head, logits, samples, slots);
  }
}

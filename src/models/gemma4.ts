import type { LayerCache } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import { rounded } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import { Attention } from "../layers/attention.ts";
import { Experts } from "../layers/experts.ts";
import type { ForwardContext } from "../layers/forward-context.ts";
import { GatedMlp } from "../layers/gated-mlp.ts";
import type { LinearInput } from "../layers/linear.ts";
import { RmsNorm } from "../layers/norm.ts";
import { PerLayerBlock, PerLayerInputs, type PerLayerShape } from "../layers/per-layer-inputs.ts";
import type { ModelConfig } from "./config.ts";
import { type DecoderLayer, type DecoderOptions, defineDecoder, type LayerPlace } from "./decoder.ts";
import type { ModelFamily } from "./model.ts";

/** The text part of Gemma 4. */
export const gemma4: ModelFamily = {
  define: (config, part) =>
    defineDecoder(config, part, (place) => new Gemma4Layer(config, place), optionsOf(config)),
};

function optionsOf(config: ModelConfig): DecoderOptions {
  const inputs = perLayerShape(config);
  return {
    // Rounded as the embeddings themselves are: so the models were trained.
    embeddingScale: (dtype) => rounded(Math.sqrt(config.hiddenSize), dtype),
    ...(inputs && { createInputs: (parameters) => new PerLayerInputs(parameters, inputs) }),
    // Some checkpoints have what layers that only read a cache do not need.
    ignored: config.kvSources.flatMap((source, layer) =>
      source === layer ? [] : [new RegExp(`^model\\.layers\\.${layer}\\.self_attn\\.[kv]_(?:proj|norm)\\.`)],
    ),
  };
}

/** Undefined for models whose layers read the residual stream alone. */
function perLayerShape(config: ModelConfig): PerLayerShape | undefined {
  const { vocabSize, hiddenSize, numLayers, activation, rmsNormEps: eps, gemma4: own } = config;
  invariant(own !== undefined, "Gemma 4 has a config of its own");
  if (own.perLayerInputSize === 0) return undefined;
  return { vocabSize, hiddenSize, numLayers, activation, eps, inputSize: own.perLayerInputSize };
}

/**
 * Gemma 3's block with norms of values, heads and a rope by the layer's kind, in the last layers perhaps without keys and values of its
 * own; its feed-forward block may have experts beside it, an input of the layer's own may follow, and at the end all of the residual
 * stream is multiplied by a number.
 */
class Gemma4Layer implements DecoderLayer {
  readonly #inputNorm: RmsNorm;
  readonly #attention: Attention;
  readonly #attentionNorm: RmsNorm;
  readonly #mlpInputNorm: RmsNorm;
  readonly #mlp: GatedMlp;
  readonly #experts: ExpertBranch | undefined;
  readonly #mlpNorm: RmsNorm;
  readonly #perLayer: PerLayerBlock | undefined;
  /** [1] */
  readonly #scalar: Tensor;

  constructor(config: ModelConfig, place: LayerPlace) {
    const { parameters, index, name, source, tables } = place;
    const { gemma4: own, layerKvHeads, kvSources, layerWindows, attentionBias = false } = config;
    invariant(own !== undefined, "Gemma 4 has a config of its own");
    const norm = (part: string, of: string, size = config.hiddenSize) =>
      new RmsNorm(parameters, `${name}.${part}`, `${source}.${of}`, size, config.rmsNormEps);
    const [heads, window] = [layerKvHeads[index]!, layerWindows[index]!];
    const readsOnly = kvSources[index] !== index;
    this.#inputNorm = norm("inputNorm", "input_layernorm");
    this.#attention = new Attention(parameters, `${name}.attention`, `${source}.self_attn`, {
      ...{ ...config, ...heads, ...tables, window, readsOnly },
      ...{ qkvBias: attentionBias, outputBias: attentionBias },
      keysAreValues: own.keysAreValues && window === 0,
      headNorm: {
        query: norm("attention.queryNorm", "self_attn.q_norm", heads.headDim),
        ...(!readsOnly && {
          key: norm("attention.keyNorm", "self_attn.k_norm", heads.headDim),
          normsValues: true,
        }),
      },
    });
    this.#attentionNorm = norm("attentionNorm", "post_attention_layernorm");
    this.#mlpInputNorm = norm("mlpInputNorm", "pre_feedforward_layernorm");
    this.#mlp = new GatedMlp(parameters, `${name}.mlp`, `${source}.mlp`, {
      ...{ ...config, bias: false },
      intermediateSize: config.intermediateSize * (own.doubleWide[index] ? 2 : 1),
    });
    this.#experts = config.experts && new ExpertBranch(config, place);
    this.#mlpNorm = norm("mlpNorm", "post_feedforward_layernorm");
    const inputs = perLayerShape(config);
    this.#perLayer = inputs && new PerLayerBlock(parameters, name, source, index, inputs);
    this.#scalar = parameters.get({
      ...{ name: `${name}.scalar`, shape: [1], dtype: "float32", dummy: "ones" },
      sources: [{ name: `${source}.layer_scalar`, shape: [1] }],
    });
  }

  forward(context: ForwardContext, residual: Tensor, cache: LayerCache): void {
    const attended = this.#attention.forward(context, this.#inputNorm.of(residual), cache);
    this.#attentionNorm.addTo(context, residual, attended);
    const dense = this.#mlp.forward(context, this.#mlpInputNorm.of(residual));
    const computed = this.#experts?.add(context, residual, dense) ?? dense;
    if (this.#perLayer === undefined) {
      this.#mlpNorm.addTo(context, residual, computed, this.#scalar);
      return;
    }
    this.#mlpNorm.addTo(context, residual, computed);
    this.#perLayer.addTo(context, residual, this.#scalar);
  }
}

/** Experts beside a dense block: norm(dense) + norm(experts(norm(x))), chosen by a router with a norm of its own. */
class ExpertBranch {
  readonly #denseNorm: RmsNorm;
  readonly #inputNorm: RmsNorm;
  readonly #routerNorm: NonNullable<LinearInput["norm"]>;
  readonly #experts: Experts;
  readonly #norm: RmsNorm;

  constructor(config: ModelConfig, { parameters, name, source }: LayerPlace) {
    const { experts, hiddenSize, rmsNormEps: eps, activation } = config;
    invariant(experts !== undefined, "a model with experts has a config of them");
    const norm = (part: string, of: string) =>
      new RmsNorm(parameters, `${name}.${part}`, `${source}.${of}`, hiddenSize, eps);
    this.#denseNorm = norm("denseNorm", "post_feedforward_layernorm_1");
    this.#inputNorm = norm("expertsInputNorm", "pre_feedforward_layernorm_2");
    this.#routerNorm = {
      eps,
      weight: parameters.get({
        ...{ name: `${name}.routerNorm.weight`, shape: [hiddenSize], dummy: "ones" },
        sources: [
          {
            ...{ name: `${source}.router.scale`, shape: [hiddenSize] },
            affine: { scale: hiddenSize ** -0.5, offset: 0 },
          },
        ],
      }),
    };
    this.#experts = new Experts(parameters, `${name}.experts`, source, {
      ...{ ...experts, hiddenSize, activation: { kind: activation } },
      ...{ names: { router: "router.proj" }, scales: "router.per_expert_scale" },
    });
    this.#norm = norm("expertsNorm", "post_feedforward_layernorm_2");
  }

  /** The sum for x[T, H] of which `dense` [T, H] is given, in memory of the workspace. */
  add(context: ForwardContext, x: Tensor, dense: Tensor): Tensor {
    const { workspace } = context;
    const sum = workspace.tensor("besideDense", x.dtype, x.shape);
    this.#denseNorm.forward(context, sum, dense);
    const routed = workspace.tensor("sublayer", x.dtype, x.shape);
    this.#experts.forward(context, routed, this.#inputNorm.of(x), { x, norm: this.#routerNorm });
    this.#norm.addTo(context, sum, routed);
    return sum;
  }
}

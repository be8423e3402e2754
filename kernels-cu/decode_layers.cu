// Layers of a decoder for at most 8 rows of one token each, as one launch. A layer:
//
//   qkv = norm(residual) · Wqkvᵀ,  attended = attend(qkv),  residual += attended · Woutᵀ,
//   activated = act(norm(residual) · Wupᵀ),  residual += activated · Wdownᵀ
//
//   residual [T, H]     attended [T, g·NKV·D]     activated [T, I]     all elem_t; row r's token is token r
//   table    of each layer weights, norms, biases, and its paged keys and values; the batch is as in attention_decode.cu
//   exchange {pair of elements, tag} [STREAMS][8][EXCHANGE_WIDTH / 2], partials {float, tag} [CTAs][g·D + 2g] and epochs
//            uint32 [CTAs] are scratch; zeros at first
//
// Parallelisation: CTAS CTAs, one a multiprocessor, stay for all layers. In each, a warp streams weights, product after product,
// through a ring (weight_ring.cuh); it waits for nobody's results. WARPS warps do the stages: four products
// (layer_product.cuh) and attention (layer_attention.cuh).
//
// Why this version: with few rows a product is read in 2 to 4 µs, and what stands between one kernel's last byte and the
// next one's first takes as long. Here a stage's outputs reach the other CTAs through L2 in about 1 µs (tagged.cuh), while
// weights keep streaming.
//
// A stream, which is what a stage leaves for the next, has one place, overwritten in the next layer. A CTA that has found all of
// a stream knows that all others have finished the stage, and what they did before: what they read then may be overwritten.
// Tags count layers, from the number of launches so far on; each CTA keeps that in a word of its own, read when all launches
// before have finished, so all launches have the same grid, and graphs may be replayed in any order.
//
// All CTAs must be resident at once: they are, being at most one a multiprocessor and waiting for nothing that starts after
// them. Other processes' kernels can delay them: time slices are of the whole GPU. Only where others hold multiprocessors for
// good, which MPS allows, a CTA would wait in vain, and trap after some ten seconds.
//
// Measured on an H100, Qwen3-0.6B, 28 layers, a context of 100 tokens, µs a layer at 1 / 2 / 4 / 8 rows: 13.9 / 14.0 / 14.5 /
// 18.3; five kernels take 21 / 23 / 23 / 22–25, and reading the weights alone 10.0.
#include "layer_attention.cuh"

#if !defined(STAGE_QKV) || !defined(STAGE_OUTPUT) || !defined(STAGE_UP) || !defined(STAGE_DOWN) || !defined(MAX_LAYERS)
#error "STAGE_QKV, STAGE_OUTPUT, STAGE_UP, STAGE_DOWN and MAX_LAYERS come from src/backend/cuda/ops/decode-layers.ts"
#endif
#if !defined(EXCHANGE_WIDTH) || !defined(LAYER_POINTERS) || !defined(LAYER_THREADS) || !defined(LAYERS_SHARED_BYTES)
#error "EXCHANGE_WIDTH, LAYER_POINTERS, LAYER_THREADS and LAYERS_SHARED_BYTES come from src/backend/cuda/ops/decode-layers.ts"
#endif

using Qkv = Product<STAGE_QKV>;
using Output = Product<STAGE_OUTPUT>;
using Up = Product<STAGE_UP>;
using Down = Product<STAGE_DOWN>;
static_assert(Qkv::OUTPUTS <= EXCHANGE_WIDTH && Output::IN <= EXCHANGE_WIDTH && Up::OUTPUTS <= EXCHANGE_WIDTH &&
                  Down::OUTPUTS <= EXCHANGE_WIDTH,
              "the host must leave room for what is exchanged");
static_assert(Output::OUTPUTS == Down::OUTPUTS, "both are added to the residual stream");

// A warp fetches weights; registers are handed over by four warps at a time.
constexpr int THREADS = CONSUMERS + 4 * WARP, PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;
static_assert(THREADS == LAYER_THREADS, "the host must launch a producer and its idle neighbours");
// Tags that a launch uses up.
constexpr uint32 TAGS_OF_LAUNCH = 64;
static_assert(MAX_LAYERS <= TAGS_OF_LAUNCH, "every layer of a launch has a tag of its own");

enum Stream { QKV, ATTENDED, MIDDLE, ACTIVATED, RESIDUAL };
constexpr int STREAM_PITCH = EXCHANGE_WIDTH / 2;

// Norms of heads and biases may be null.
struct Layer {
  const elem_t *qkv, *qkv_norm, *qkv_bias;
  AttentionLayer attention;
  const elem_t *output, *output_bias, *up, *up_norm, *down;
};
static_assert(sizeof(Layer) == LAYER_POINTERS * 8, "the host lays out LAYER_POINTERS addresses");
struct LayerTable {
  Layer layers[MAX_LAYERS];
};

struct Shared {
  WeightRing ring;
  AttentionShared attention;
  // A stage that writes to one has passed a barrier since all threads have read the other, or found what they made of it.
  union {
    ProductSums sums;
    AttentionResults results;
  };
  float squares[WARPS][MAX_TOKENS];
};
static_assert(sizeof(Shared) <= LAYERS_SHARED_BYTES, "the host must ask for room for Shared");

// To L2, a line a CTA: norms are read when nothing else is there to hide how long memory takes.
__device__ __forceinline__ void prefetch_norms(const Layer& layer) {
  constexpr int LINE = 128, LINES = ceil_div(Qkv::IN * 2, LINE), HEAD_LINES = ceil_div(HEAD_DIM * 2, LINE);
  int line = blockIdx.x;
  const auto take = [&](const elem_t* norm, int lines) {
    if (norm != nullptr && line >= 0 && line < lines && threadIdx.x % WARP == 0)
      asm volatile("prefetch.global.L2 [%0];" ::"l"(reinterpret_cast<const char*>(norm) + line * LINE));
    line -= lines;
  };
  take(layer.qkv_norm, LINES), take(layer.up_norm, LINES);
  take(layer.attention.query_norm, HEAD_LINES), take(layer.attention.key_norm, HEAD_LINES);
}

// Grid: as many CTAs as all other launches with these epochs, at least CTAS. scale_log2: the scale of scores times log2(e);
// window 0 = none; activation: its code, or −1.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    decode_layers(const __grid_constant__ LayerTable table, elem_t* residual, elem_t* attended, elem_t* activated,
                  uint64* exchange, uint64* partials, uint32* epochs, const float* __restrict__ cos_sin,
                  const int* __restrict__ slot_mapping, const int* __restrict__ block_tables,
                  const int* __restrict__ row_slots, const int* __restrict__ context_lens, int tokens, int layers,
                  int kv_heads, int max_blocks, int window, int activation, float scale_log2, float eps, float head_eps) {
  extern __shared__ __align__(128) unsigned char dynamic[];
  Shared& shared = *reinterpret_cast<Shared*>(dynamic);
  if (threadIdx.x == CONSUMERS) shared.ring.init();
  __syncthreads();
  if (threadIdx.x >= CONSUMERS) {
    release_registers<PRODUCER_REGISTERS>();
    if (blockIdx.x >= CTAS || threadIdx.x >= CONSUMERS + WARP) return;
    RingProducer producer = {shared.ring};
#pragma unroll 1
    for (int l = 0; l < layers; l++) {
      const Layer& layer = table.layers[l];
      if (l + 1 < layers) prefetch_norms(table.layers[l + 1]);
      Qkv::fetch(producer, layer.qkv);
      Output::fetch(producer, layer.output);
      Up::fetch(producer, layer.up);
      Down::fetch(producer, layer.down);
    }
    return;
  }

  acquire_registers<CONSUMER_REGISTERS>();
  GRID_DEPENDENCY_WAIT();
  uint32 epoch;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(epoch) : "l"(epochs + blockIdx.x) : "memory");
  const AttentionBatch batch = {cos_sin,  slot_mapping, block_tables, tokens,  kv_heads,
                                max_blocks, window,     scale_log2,   head_eps};
  LayerAttention attention = {shared.attention, shared.results, batch, partials};
  attention.plan(row_slots, context_lens);
  if (threadIdx.x == 0) epochs[blockIdx.x] = epoch + 1;
  if (blockIdx.x >= CTAS) return;

  RingConsumer weights = {shared.ring};
  int turn = 0;
  const auto stream = [&](Stream of) { return exchange + of * MAX_TOKENS * STREAM_PITCH; };
  // A product from one stream to the next.
  const auto between = [&](Stream from, Stream to, uint32 tag) {
    return Ends{stream(from), stream(to), STREAM_PITCH, tag, tag};
  };
#pragma unroll 1
  for (int l = 0; l < layers; l++) {
    const Layer& layer = table.layers[l];
    const uint32 tag = epoch * TAGS_OF_LAUNCH + l + 1;
    if (l == layers - 1) GRID_DEPENDENCY_LAUNCH();
    attention.prefetch(layer.attention);
    run_product<Qkv, true>(weights, shared.sums, shared.squares, turn, tokens,
                           {stream(RESIDUAL), stream(QKV), STREAM_PITCH, tag - 1, tag, l == 0 ? residual : nullptr},
                           {layer.qkv_norm, layer.qkv_bias, nullptr, nullptr, -1, eps});
    attention.run(layer.attention, stream(QKV), stream(ATTENDED), STREAM_PITCH, attended, tag);
    run_product<Output, false>(weights, shared.sums, shared.squares, turn, tokens, between(ATTENDED, MIDDLE, tag),
                               {nullptr, layer.output_bias, residual, residual, -1, 0});
    run_product<Up, true>(weights, shared.sums, shared.squares, turn, tokens, between(MIDDLE, ACTIVATED, tag),
                          {layer.up_norm, nullptr, nullptr, activated, activation, eps});
    run_product<Down, false>(weights, shared.sums, shared.squares, turn, tokens, between(ACTIVATED, RESIDUAL, tag),
                             {nullptr, nullptr, residual, residual, -1, 0});
  }
}

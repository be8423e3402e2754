// The routing of a mixture of experts: each token's experts and their weights from the router's logits, and for each expert the
// list of its tokens, cut into items.
//
//   logits   float [T, E]                     bias     float [E] or null, added to them
//   scales   float [E] or null, which the weights that follow are multiplied by
//   x, normed  elem_t [T, H]       gamma  elem_t [H]
//   ids      int32 [T · k], pair by pair      weights    float [T · k]
//   sorted   int32 [T · k], pairs by expert, those of one ascending
//   items    Item [1 + most], the first one's count is their number
//
// Entries: experts_choose makes ids and weights; experts_list makes lists of them; experts_route does both for few tokens, and
// normalises x, whose norm may be null.
//
// Parallelisation: experts_choose: a warp a token. experts_list and experts_route: a CTA an expert. Each counts the pairs of all
// experts for itself, so that it knows where its own list begins without waiting for another; then it collects its own pairs in
// their order. Nothing depends on the order in which threads run: lists, and so results, repeat.
//
// Why this version: with few tokens this is pure latency between the router and the experts, so everything is one launch, and to
// choose again in every CTA costs less than another. With many, reading the ids once a CTA is small beside the products.
#include "expert_choice.cuh"
#include "expert_items.cuh"

#if !defined(ROUTE_THREADS) || !defined(MAX_ROUTE_PAIRS)
#error "ROUTE_THREADS and MAX_ROUTE_PAIRS come from src/backend/cuda/ops/experts-route.ts"
#endif

constexpr int WARPS = ROUTE_THREADS / WARP;

// Makes the list of expert blockIdx.x. `ids` gives the expert of a pair.
template <class Ids>
__device__ __forceinline__ void list_pairs(Ids ids, int pairs, int item_pairs, int32* sorted, Item* items) {
  __shared__ int32 counts[EXPERTS];
  __shared__ int32 warp_counts[WARPS];
  const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP, expert = blockIdx.x;
  for (int i = tid; i < EXPERTS; i += ROUTE_THREADS) counts[i] = 0;
  __syncthreads();
  for (int pair = tid; pair < pairs; pair += ROUTE_THREADS) atomicAdd(counts + ids(pair), 1);
  __syncthreads();
  int before = 0, items_before = 0, all_items = 0;
  for (int i = tid; i < EXPERTS; i += ROUTE_THREADS) {
    const int count = counts[i], cut = ceil_div(count, item_pairs);
    all_items += cut;
    if (i < expert) before += count, items_before += cut;
  }
  const auto sum = [](int x) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(FULL_MASK, x, offset);
    return x;
  };
  before = block_reduce(before, 0, sum);
  items_before = block_reduce(items_before, 0, sum);
  if (expert == 0) {
    all_items = block_reduce(all_items, 0, sum);
    if (tid == 0) items[0] = {0, 0, all_items, 0};
  }
  const int count = counts[expert];
  for (int i = tid; i * item_pairs < count; i += ROUTE_THREADS)
    items[1 + items_before + i] = {expert, before + i * item_pairs, min(item_pairs, count - i * item_pairs), 0};
  if (count == 0) return;
  int found = 0;
  for (int start = 0; start < pairs; start += ROUTE_THREADS) {
    const int pair = start + tid;
    const bool is_mine = pair < pairs && ids(pair) == expert;
    const uint32 lanes = __ballot_sync(FULL_MASK, is_mine);
    if (lane == 0) warp_counts[warp] = __popc(lanes);
    __syncthreads();
    int at = before + found + __popc(lanes & ((1u << lane) - 1));
    for (int i = 0; i < WARPS; i++) {
      if (i < warp) at += warp_counts[i];
      found += warp_counts[i];
    }
    if (is_mine) sorted[at] = pair;
    __syncthreads();
  }
}

extern "C" __global__ void __launch_bounds__(ROUTE_THREADS)
    experts_choose(int32* ids, float* weights, const float* logits, const float* bias, const float* scales, int tokens, int k,
                   int softmax_over_all) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int token = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (token >= tokens) return;
  const Choice choice = choose(logits + static_cast<int64>(token) * EXPERTS, bias, scales, k, softmax_over_all);
  if (lane >= k) return;
  ids[token * k + lane] = choice.expert;
  weights[token * k + lane] = choice.weight;
}

extern "C" __global__ void __launch_bounds__(ROUTE_THREADS)
    experts_list(int32* sorted, Item* items, const int32* ids, int pairs, int item_pairs) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  list_pairs([&](int pair) { return load_coherent(ids + pair); }, pairs, item_pairs, sorted, items);
}

// For tokens · k <= MAX_ROUTE_PAIRS.
extern "C" __global__ void __launch_bounds__(ROUTE_THREADS)
    experts_route(float* weights, int32* sorted, Item* items, elem_t* normed, const float* logits, const float* bias,
                  const float* scales, const elem_t* x, const elem_t* __restrict__ gamma, int tokens, int k, int softmax_over_all, int item_pairs, int hidden,
                  float eps) {
  __shared__ int32 ids[MAX_ROUTE_PAIRS];
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  for (int token = warp; token < tokens; token += WARPS) {
    const Choice choice = choose(logits + token * EXPERTS, bias, scales, k, softmax_over_all);
    if (lane < k) {
      ids[token * k + lane] = choice.expert;
      if (blockIdx.x == 0) weights[token * k + lane] = choice.weight;
    }
  }
  __syncthreads();
  list_pairs([&](int pair) { return ids[pair]; }, tokens * k, item_pairs, sorted, items);
  if (gamma == nullptr) return;
  // The last CTAs first: expert 0's has more to do.
  for (int token = gridDim.x - 1 - blockIdx.x; token < tokens; token += gridDim.x) {
    const elem_t* row = x + static_cast<int64>(token) * hidden;
    float squares = 0;
    for (int i = threadIdx.x * VEC; i < hidden; i += ROUTE_THREADS * VEC) {
      float values[VEC];
      load_elems<VEC, true>(row + i, values);
#pragma unroll
      for (int j = 0; j < VEC; j++) squares += values[j] * values[j];
    }
    const float scale = rsqrtf(block_sum(squares) / hidden + eps);
    for (int i = threadIdx.x * VEC; i < hidden; i += ROUTE_THREADS * VEC) {
      float values[VEC], factors[VEC];
      load_elems<VEC, true>(row + i, values);
      load_elems<VEC>(gamma + i, factors);
#pragma unroll
      for (int j = 0; j < VEC; j++) values[j] *= scale * factors[j];
      store_elems<VEC>(normed + static_cast<int64>(token) * hidden + i, values);
    }
  }
}

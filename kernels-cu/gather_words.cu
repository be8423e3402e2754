// gather_words: out[row, rank, column] = part[row, column] of that rank, bit by bit, on every rank.
//
//   out     uint32 [rows, RANKS, width]        part  uint32 [rows, width], of this rank
//           of which the words of part from `first` on take part, `words` of them; a single row gathers part after part
//   peers   of each rank, uint64 [2 buffers, RANKS, capacity] at `offset`: words with their tags
//   rounds  uint32 [PEER_BLOCKS]                given_up  uint32, in host memory
//
// Parallelisation: a word a thread at a time, in whole warps over all blocks.
// Why this version: candidates of a step are a few hundred bytes, so latency is all that counts, and any word may be any value,
// so each goes with the number of its round in one 8-byte store: no value is set apart, nothing is ever cleared, and no flag
// follows. Larger messages would do better without the tags, which double them.
#include "peers.cuh"

extern "C" __global__ void __launch_bounds__(PEER_THREADS, PEER_BLOCKS_PER_SM)
    gather_words(const __grid_constant__ PeerTable peers, uint32* out, const uint32* part, uint32* rounds,
                 const uint32* given_up, int64 offset, int64 first, int32 width, int32 capacity, int32 rank, int32 words) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const uint32 round = this_round(rounds);
  // Memory begins as zeros, which are no round's tag; two rounds of one tag are 2^32 apart.
  const uint32 tag = round + 1;
  const auto place = [&](int of, int from) {
    uint64* all = reinterpret_cast<uint64*>(peers.memory[of] + offset);
    return all + static_cast<int64>(round % 2 * RANKS + from) * capacity;
  };
  const auto target = [&](int from, int i) {
    const int64 word = first + i, row = word / width;
    return out + (row * RANKS + from) * width + (word - row * width);
  };
  for (int i = first_item(); i < words; i += item_step()) {
    const uint32 own = load_coherent(part + first + i);
    const uint64 tagged = static_cast<uint64>(tag) << 32 | own;
#pragma unroll
    for (int n = 0; n < RANKS - 1; n++) store_system(place(other_rank(rank, n), rank) + i, tagged);
    *target(rank, i) = own;
  }
  Patience patience(given_up);
  for (int i = first_item(); i < words; i += item_step()) {
    uint64 parts[RANKS - 1];
    while (true) {
      bool missing = false;
#pragma unroll
      for (int n = 0; n < RANKS - 1; n++) parts[n] = load_system(place(rank, other_rank(rank, n)) + i);
#pragma unroll
      for (int n = 0; n < RANKS - 1; n++) missing |= static_cast<uint32>(parts[n] >> 32) != tag;
      if (!missing) break;
      patience.spend();
    }
#pragma unroll
    for (int n = 0; n < RANKS - 1; n++) *target(other_rank(rank, n), i) = static_cast<uint32>(parts[n]);
  }
  end_round(rounds, round);
}

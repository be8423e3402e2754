// A batch's query tiles as a queue, which the warps of a persistent prefill kernel hand each other.
#pragma once
#include "attention.cuh"

// A query tile to compute. packed_rows 0: there are no more.
struct Ticket {
  int kv_head, slot, first_token, num_queries, context, first_packed, packed_rows, padding;
};

// Finds query tiles by their number in the queue: row by row, the last tile of a row first, KV heads together.
// ROWS: packed query rows of a tile.
template <int ROWS>
struct TileFinder {
  const int *cu_seqlens_q, *context_lens, *row_slots;
  int first_row, num_rows, num_kv_heads;
  int base_row = 0, base_tile = 0;  // tiles of the rows before base_row

  // All lanes call it, with numbers that grow.
  __device__ __forceinline__ Ticket find(int number, int lane) {
    const int tile = number / num_kv_heads;
    Ticket ticket = {};
    ticket.kv_head = number % num_kv_heads;
    for (; base_row < num_rows; base_row += WARP) {
      const int row = first_row + base_row + lane;
      const bool exists = base_row + lane < num_rows;
      const int first_token = exists ? cu_seqlens_q[row] : 0;
      const int num_queries = exists ? cu_seqlens_q[row + 1] - first_token : 0;
      const int tiles = ceil_div(num_queries * GROUP_SIZE, ROWS);
      int end = tiles;
#pragma unroll
      for (int offset = 1; offset < WARP; offset *= 2) {
        const int before = __shfl_up_sync(FULL_MASK, end, offset);
        if (lane >= offset) end += before;
      }
      const int all = __shfl_sync(FULL_MASK, end, WARP - 1);
      if (tile < base_tile + all) {
        const int owner = __ffs(__ballot_sync(FULL_MASK, tile < base_tile + end)) - 1;
        const int context = exists ? context_lens[row] : 0, slot = exists ? row_slots[row] : 0;
        ticket.slot = __shfl_sync(FULL_MASK, slot, owner);
        ticket.first_token = __shfl_sync(FULL_MASK, first_token, owner);
        ticket.num_queries = __shfl_sync(FULL_MASK, num_queries, owner);
        ticket.context = __shfl_sync(FULL_MASK, context, owner);
        ticket.first_packed = (base_tile + __shfl_sync(FULL_MASK, end, owner) - 1 - tile) * ROWS;
        ticket.packed_rows = ticket.num_queries * GROUP_SIZE;
        return ticket;
      }
      base_tile += all;
    }
    return ticket;
  }
};

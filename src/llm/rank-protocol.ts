import type { RankMemory } from "../ranks/rank-group.ts";
import type { EncodedError } from "../threads/error-codec.ts";
import type { PartSource } from "./load-part.ts";

/** A message to the Worker of a rank. What comes after loading goes through the memory that ranks share. */
export type RankMessage =
  | { readonly type: "load"; readonly source: Required<PartSource>; readonly memory: RankMemory }
  /** All ranks have loaded: build the runner and follow the leader. */
  | { readonly type: "build" }
  /** Nobody will build: free what was loaded, and end. */
  | { readonly type: "end" };

/** A message from the Worker of a rank. */
export type RankReply =
  /** Bytes of its own part. */
  | { readonly type: "progress"; readonly loadedBytes: number; readonly totalBytes: number }
  /** All of it is there, in so many bytes of the device's memory. */
  | { readonly type: "loaded"; readonly weightBytes: number }
  /** The rank has failed and ends; on record in the group, too. */
  | { readonly type: "failed"; readonly error: EncodedError };

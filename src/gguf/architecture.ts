import { UnsupportedModelError } from "../base/errors.ts";
import { quoted } from "../base/quoted.ts";
import type { GgufMetadata } from "./metadata.ts";

/** A family of models as GGUF stores it. */
export interface GgufArchitecture {
  /** The prefix of its metadata, e.g. `llama`. */
  readonly name: string;
  /** The name of the same architecture in a config.json. */
  readonly model: string;
  /**
   * True if the rows of each query and key head are stored for a rotation of neighbouring dimensions: as pairs, of which
   * one is of the head's first half and the other of its second.
   */
  readonly pairsRows: boolean;
}

const ARCHITECTURES: readonly GgufArchitecture[] = [
  // Mistral's models call themselves so, too.
  { name: "llama", model: "LlamaForCausalLM", pairsRows: true },
  { name: "qwen2", model: "Qwen2ForCausalLM", pairsRows: false },
  { name: "qwen3", model: "Qwen3ForCausalLM", pairsRows: false },
];

/** @throws ModelDataError when a file does not say what it is; UnsupportedModelError for what Octavo cannot load */
export function architectureOf(metadata: GgufMetadata): GgufArchitecture {
  const kind = metadata.string("general.type") ?? "model";
  if (kind !== "model") throw metadata.unsupported("general.type", "; only models are");
  const name = metadata.string("general.architecture");
  if (name === undefined) throw metadata.invalid("general.architecture", "a name");
  const found = ARCHITECTURES.find((each) => each.name === name);
  if (found !== undefined) return found;
  const known = ARCHITECTURES.map((each) => each.name).join(", ");
  throw new UnsupportedModelError(
    metadata.path,
    `architecture ${quoted(name)} is not supported in GGUF files; supported are ${known}`,
  );
}

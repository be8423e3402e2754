import type { CheckpointTensor } from "./checkpoint-tensor.ts";

/** Prefixes that multimodal checkpoints give the names of their language model's tensors, and those of a language model alone. */
const PREFIXES = [
  [/^(?:model\.language_model|language_model\.model|model\.text_model)\./, "model."],
  [/^language_model\.lm_head\./, "lm_head."],
] as const;

/** A checkpoint's tensors by the names that a language model alone has, and the names that they are stored by. */
export function textTensors(stored: ReadonlyMap<string, CheckpointTensor>) {
  const names = new Map<string, string>();
  const tensors = new Map<string, CheckpointTensor>();
  for (const [name, tensor] of stored) {
    const [pattern, own] = PREFIXES.find(([prefix]) => prefix.test(name)) ?? [];
    const textName = pattern === undefined ? name : name.replace(pattern, own!);
    // One that has the name already keeps it.
    const isFree = textName === name || !stored.has(textName);
    tensors.set(isFree ? textName : name, tensor);
    if (isFree && textName !== name) names.set(textName, name);
  }
  return { tensors, storedName: (name: string) => names.get(name) ?? name };
}

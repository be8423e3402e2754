/** A field that is refused unless its value asks for nothing. Null always asks for nothing. */
interface Refusal {
  /** 501: not supported yet. 400: will not be. */
  readonly status: 400 | 501;
  readonly reason: string;
  readonly asksNothing?: (value: unknown) => boolean;
}

const NOT_YET = "is not supported yet";
const notYet: Refusal = { status: 501, reason: NOT_YET };
const unless = (...harmless: readonly unknown[]): Refusal => ({
  ...notYet,
  asksNothing: (value) => harmless.includes(value),
});

/** Fields of OpenAI's, vLLM's, SGLang's and older servers' requests that Octavo does not support, on either endpoint. */
export const REFUSED_FIELDS: Readonly<Record<string, Refusal>> = {
  structural_tag: notYet,
  guided_decoding_backend: { status: 501, reason: "there is no choice of backends" },
  guided_whitespace_pattern: notYet,
  functions: notYet,
  function_call: unless("none"),
  suffix: unless(""),
  use_beam_search: unless(false),
  length_penalty: unless(1),
  early_stopping: unless(false),
  logits_processors: notYet,
  logprob_token_ids: notYet,
  prompt_embeds: notYet,
  kv_transfer_params: notYet,
  ec_transfer_params: notYet,
  // A router that has a prompt computed elsewhere would get a second computation, and another reply.
  bootstrap_host: notYet,
  bootstrap_port: notYet,
  bootstrap_room: notYet,
  disagg_prefill_dp_rank: notYet,
  disaggregated_params: notYet,
  data_parallel_rank: unless(0),
  return_hidden_states: unless(false),
  lora_path: notYet,
  session_params: notYet,
  custom_logit_processor: notYet,
  vllm_xargs: notYet,
  mm_processor_kwargs: notYet,
  thinking_token_budget: notYet,
  verbosity: notYet,
  prediction: notYet,
  audio: notYet,
  modalities: { ...notYet, asksNothing: (value) => JSON.stringify(value) === '["text"]' },
  web_search_options: notYet,
  service_tier: unless("auto", "default"),
  truncation_side: unless("left"),
  priority: { status: 400, reason: "can only be 0", asksNothing: (value) => value === 0 },
  chat_template: {
    status: 400,
    reason: "cannot come with a request; the server's --chat-template sets it",
  },
};

/** Fields that are accepted without effect: they tell the caller's own bookkeeping apart, or hint at what happens anyway. */
export const INERT_FIELDS: ReadonlySet<string> = new Set([
  ...["user", "metadata", "store", "safety_identifier"],
  ...["prompt_cache_key", "prompt_cache_retention"],
]);

/** The first field of a body that has to be refused. @param supported fields that this endpoint supports. */
export function refusedField(
  body: Readonly<Record<string, unknown>>,
  supported: object,
): { readonly name: string; readonly status: 400 | 501; readonly message: string } | undefined {
  for (const [name, { status, reason, asksNothing }] of Object.entries(REFUSED_FIELDS)) {
    if (Object.hasOwn(supported, name)) continue;
    const value = Object.hasOwn(body, name) ? body[name] : undefined;
    if (value === undefined || value === null || asksNothing?.(value)) continue;
    return { name, status, message: `${name}: ${reason}` };
  }
  return undefined;
}

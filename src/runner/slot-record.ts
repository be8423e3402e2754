import { LOGIT_EDIT_WORDS, SLOT_WORDS, SlotFlag, SlotWord } from "../backend/backend.ts";
import { invariant } from "../base/errors.ts";
import { MAX_BAD_WORD_TOKENS, MAX_LOGIT_EDITS } from "../base/sampling-params.ts";
import { tokenMask } from "../base/token-mask.ts";
import type { SlotSampling } from "./types.ts";

/** The tables of one slot as the device reads them; absent ones are not read. */
export interface SlotRecord {
  readonly params: Uint32Array;
  readonly edits: Uint32Array | undefined;
  readonly badWords: Uint32Array | undefined;
  readonly allowed: Uint32Array | undefined;
}

/** True if the slot's token counts must be kept. */
export function hasPenalties({
  repetitionPenalty,
  presencePenalty,
  frequencyPenalty,
}: SlotSampling): boolean {
  return repetitionPenalty !== 1 || presencePenalty !== 0 || frequencyPenalty !== 0;
}

/** True if the slot's tokens are drawn by the model's logits and a temperature alone; see `Backend.drawTokens`. */
export function isPlain(sampling: SlotSampling): boolean {
  const { temperature, topP, topK, minP, logitBias, bannedTokens, badWords } = sampling;
  const filtered = temperature > 0 && (topP < 1 || topK > 0 || minP > 0);
  const edited = logitBias.length + bannedTokens.length + badWords.length > 0;
  const limited = sampling.allowedTokenIds !== undefined || sampling.masked === true;
  return !filtered && !edited && !limited && !hasPenalties(sampling);
}

/** First position of an edit that never ends. */
const FOREVER = 0x7fffffff;

/** Packs sampling parameters into the words that the sampling ops read. */
export function packSlotRecord(sampling: SlotSampling, vocabSize: number): SlotRecord {
  const edits = packEdits(sampling);
  const badWords = packBadWords(sampling.badWords);
  const allowed = sampling.allowedTokenIds && tokenMask(vocabSize, sampling.allowedTokenIds);

  const params = new Uint32Array(SLOT_WORDS);
  const floats = new Float32Array(params.buffer);
  floats[SlotWord.temperature] = sampling.temperature;
  floats[SlotWord.topP] = sampling.topP;
  floats[SlotWord.minP] = sampling.minP;
  params[SlotWord.topK] = sampling.topK;
  floats[SlotWord.repetitionPenalty] = sampling.repetitionPenalty;
  floats[SlotWord.presencePenalty] = sampling.presencePenalty;
  floats[SlotWord.frequencyPenalty] = sampling.frequencyPenalty;
  params[SlotWord.seedLow] = Number(sampling.seed & 0xffffffffn);
  params[SlotWord.seedHigh] = Number(sampling.seed >> 32n);
  params[SlotWord.editCount] = edits ? edits.length / LOGIT_EDIT_WORDS : 0;
  params[SlotWord.flags] =
    (hasPenalties(sampling) ? SlotFlag.penalties : 0) |
    (edits ? SlotFlag.edits : 0) |
    (allowed || sampling.masked ? SlotFlag.allowed : 0) |
    (badWords ? SlotFlag.badWords : 0);
  return { params, edits, badWords, allowed };
}

function packEdits({ logitBias, bannedTokens, bannedUntil }: SlotSampling): Uint32Array | undefined {
  const count = logitBias.length + bannedTokens.length;
  if (count === 0) return undefined;
  invariant(count <= MAX_LOGIT_EDITS, `${count} logit edits exceed ${MAX_LOGIT_EDITS}`);
  const words = new Uint32Array(LOGIT_EDIT_WORDS * count);
  const floats = new Float32Array(words.buffer);
  const put = (i: number, token: number, value: number, until: number) => {
    const start = LOGIT_EDIT_WORDS * i;
    words[start] = token;
    floats[start + 1] = value;
    words[start + 2] = until;
  };
  for (const [i, [token, bias]] of logitBias.entries()) put(i, token, bias, FOREVER);
  for (const [i, token] of bannedTokens.entries()) put(logitBias.length + i, token, -Infinity, bannedUntil);
  return words;
}

function packBadWords(badWords: SlotSampling["badWords"]): Uint32Array | undefined {
  if (badWords.length === 0) return undefined;
  const words = badWords.flatMap((tokens) => [tokens.length, ...tokens]);
  invariant(words.length < MAX_BAD_WORD_TOKENS, `bad words take ${words.length} entries`);
  return Uint32Array.from([...words, 0]);
}

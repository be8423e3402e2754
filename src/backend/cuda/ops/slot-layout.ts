import { MAX_BAD_WORD_TOKENS, MAX_LOGIT_EDITS } from "../../../base/sampling-params.ts";
import {
  COUNT_IN_PROMPT,
  JOIN_WORDS,
  JoinWord,
  LOGIT_EDIT_WORDS,
  SLOT_WORDS,
  SlotFlag,
  SlotWord,
} from "../../backend.ts";
import { RowWord } from "../../row-words.ts";
import type { Macros } from "../kernel-source.ts";

/** Constants of slot.cuh for a slot's record and counts: `SLOT_WORD_TOP_P=1` for `SlotWord.topP`, `SLOT_FLAG_…` for the flags. */
export const SLOT_CONSTANTS: Macros = {
  SLOT_WORDS,
  ...prefixed("SLOT_WORD", SlotWord),
  ...prefixed("SLOT_FLAG", SlotFlag),
  COUNT_IN_PROMPT: `${COUNT_IN_PROMPT}u`,
};

/** Constants of process_logits.cu for a slot's other tables. */
export const SLOT_TABLE_CONSTANTS: Macros = { MAX_LOGIT_EDITS, LOGIT_EDIT_WORDS, MAX_BAD_WORD_TOKENS };

/** Constants of batch.cu for the records of rows and joins, in the same manner. */
export const RECORD_CONSTANTS: Macros = {
  ...prefixed("ROW_WORD", RowWord),
  JOIN_WORDS,
  ...prefixed("JOIN_WORD", JoinWord),
};

function prefixed(prefix: string, values: Readonly<Record<string, number>>): Macros {
  const named = Object.entries(values).map(([name, value]) => {
    const upper = name.replace(/[A-Z]/g, "_$&").toUpperCase();
    return [`${prefix}_${upper}`, value] as const;
  });
  return Object.fromEntries(named);
}

import { useState } from "preact/hooks";
import type { ScoredToken } from "./conversation.ts";

/** Classes of probability, each with a colour of its own in the style sheet: from `p0`, under 5%, to `p4`, over 90%. */
const STEPS = [0.05, 0.3, 0.6, 0.9];

/**
 * A reply token by token, coloured by probability. The token under the pointer or the keyboard's focus shows what else could have
 * stood at its place; arrow keys go from token to token.
 */
export function TokenView({ tokens }: { readonly tokens: readonly ScoredToken[] }) {
  const [at, setAt] = useState(0);
  const [isOpen, setOpen] = useState(false);
  const shown = tokens[Math.min(at, tokens.length - 1)];
  const move = (event: KeyboardEvent) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(tokens.length - 1, at + step));
    setAt(next);
    const parent = event.currentTarget as HTMLElement;
    parent.querySelectorAll<HTMLElement>(".token")[next]?.focus();
  };
  return (
    <div class="tokens">
      <div
        class="token-text"
        role="listbox"
        aria-label="Tokens of the reply"
        onKeyDown={move}
        onPointerLeave={() => setOpen(false)}
      >
        {tokens.map((token, i) => (
          <span
            role="option"
            key={String(i)}
            tabIndex={i === at ? 0 : -1}
            class={`token p${STEPS.filter((step) => Math.exp(token.logprob) >= step).length}`}
            aria-selected={i === at}
            aria-label={`${spelled(token.text)}: ${percent(token.logprob)}`}
            onPointerEnter={() => {
              setAt(i);
              setOpen(true);
            }}
            onFocus={() => {
              setAt(i);
              setOpen(true);
            }}
          >
            {token.text}
          </span>
        ))}
      </div>
      <div class="alternatives" aria-live="polite">
        {isOpen && shown ? (
          <Alternatives token={shown} />
        ) : (
          <p class="muted">Point at a token, or use the arrow keys.</p>
        )}
      </div>
    </div>
  );
}

function Alternatives({ token }: { readonly token: ScoredToken }) {
  const isListed = token.top.some(({ text }) => text === token.text);
  const rows = isListed ? token.top : [...token.top, token];
  return (
    <table>
      <caption class="hidden">Probabilities at this place</caption>
      <tbody>
        {rows.map(({ text, logprob }) => (
          <tr key={text} class={text === token.text ? "chosen" : undefined}>
            <th scope="row">
              <code>{spelled(text)}</code>
            </th>
            <td>
              <span class="bar" style={{ width: `${100 * Math.exp(logprob)}%` }} />
            </td>
            <td class="figure">{percent(logprob)}</td>
            <td class="figure muted">{logprob.toFixed(2)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function percent(logprob: number): string {
  const share = 100 * Math.exp(logprob);
  return `${share >= 99.95 ? "100" : share.toFixed(share < 10 ? 2 : 1)}%`;
}

/** With spaces and line breaks visible. */
function spelled(text: string): string {
  return text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
}

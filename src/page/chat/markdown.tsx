import type { MarkedToken, Token } from "marked";
import type { ComponentChildren } from "preact";
import { useRef } from "preact/hooks";
import { Unless } from "../store.ts";
import { type Blocks, MAX_DEPTH, readBlocks } from "./blocks.ts";
import { CopyButton } from "./copy-button.tsx";

/**
 * Text in Markdown. It becomes elements one by one and never passes through an HTML parser: HTML in it is shown as text, links go
 * to the web or to mail only, and images are links, as nothing is loaded from elsewhere. A block is drawn anew only when its
 * text changes, so a growing text costs its last block.
 */
export function Markdown({ text }: { readonly text: string }) {
  const last = useRef<Blocks>(undefined);
  last.current = readBlocks(text, last.current);
  const { blocks } = last.current;
  return (
    <div class="markdown">
      {blocks.map((block, i) => (
        // Text grows at its end: blocks stay where they are.
        <Unless key={i} of={[block.raw]}>
          {() => drawn(block, 0)}
        </Unless>
      ))}
    </div>
  );
}

function drawn(token: Token, depth: number): ComponentChildren {
  if (depth > MAX_DEPTH) return token.raw;
  const all = (tokens: readonly Token[] | undefined) => tokens?.map((inner) => drawn(inner, depth + 1));
  if (token.type === "piece") return <>{all((token as { tokens?: Token[] }).tokens)}</>;
  const known = token as MarkedToken;
  switch (known.type) {
    case "space":
    case "def":
      return null;
    case "heading": {
      // The page has headings of its own above these.
      const Heading = `h${Math.min(known.depth + 2, 6)}` as "h3";
      return <Heading>{all(known.tokens)}</Heading>;
    }
    case "paragraph":
      return <p>{all(known.tokens)}</p>;
    case "code":
      return <CodeBlock text={known.text} language={known.lang ?? ""} />;
    case "blockquote":
      return <blockquote>{all(known.tokens)}</blockquote>;
    case "hr":
      return <hr />;
    case "list": {
      const items = known.items.map((item) => <li>{all(item.tokens)}</li>);
      return known.ordered ? <ol start={Number(known.start)}>{items}</ol> : <ul>{items}</ul>;
    }
    case "checkbox":
      return known.checked ? "☑ " : "☐ ";
    case "table": {
      const align = (i: number) => ({ textAlign: known.align[i] ?? "left" });
      return (
        // Wide tables scroll, by keyboard too.
        // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reachable
        <section class="scroll" tabIndex={0} aria-label="Table">
          <table>
            <thead>
              <tr>
                {known.header.map((cell, i) => (
                  <th style={align(i)}>{all(cell.tokens)}</th>
                ))}
              </tr>
            </thead>
            <tbody>
              {known.rows.map((row) => (
                <tr>
                  {row.map((cell, i) => (
                    <td style={align(i)}>{all(cell.tokens)}</td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </section>
      );
    }
    case "strong":
      return <strong>{all(known.tokens)}</strong>;
    case "em":
      return <em>{all(known.tokens)}</em>;
    case "del":
      return <del>{all(known.tokens)}</del>;
    case "codespan":
      return <code>{known.text}</code>;
    case "br":
      return <br />;
    case "link":
      return <Link href={known.href}>{all(known.tokens)}</Link>;
    case "image":
      return <Link href={known.href}>{known.text || "image"}</Link>;
    case "escape":
      return known.text;
    case "text":
      return "tokens" in known && known.tokens ? all(known.tokens) : decoded(known.text);
    case "html":
      // Models put it into cells of tables.
      return /^<br\s*\/?>$/i.test(known.raw) ? <br /> : known.raw;
    default:
      return token.raw;
  }
}

const ENTITIES: Readonly<Record<string, string>> = {
  ...{ "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&nbsp;": "\u00a0" },
};

function decoded(text: string): string {
  return text.replace(/&(?:amp|lt|gt|quot|#39|nbsp);/g, (entity) => ENTITIES[entity]!);
}

/** A link that opens elsewhere and tells there nothing of this page; of other schemes the text alone. */
function Link({ href, children }: { readonly href: string; readonly children: ComponentChildren }) {
  if (!/^(https?:\/\/|mailto:)/i.test(href)) return <>{children}</>;
  return (
    <a href={href} target="_blank" rel="noopener noreferrer">
      {children}
    </a>
  );
}

function CodeBlock({ text, language }: { readonly text: string; readonly language: string }) {
  return (
    <figure class="code">
      <figcaption>
        <span>{language.split(/\s/)[0] || "code"}</span>
        <CopyButton text={text} what="code" />
      </figcaption>
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reachable */}
      <pre tabIndex={0}>
        <code>{text}</code>
      </pre>
    </figure>
  );
}

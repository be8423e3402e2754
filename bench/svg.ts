/** Width of all pictures, in pixels. */
export const WIDTH = 720;
const PADDING = 24;
const TITLE_HEIGHT = 44;

/** Fills that are told apart in light and dark, and by people who see few colours (Okabe and Ito's palette). */
const SERIES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"];

const STYLE = `
.ground{fill:#fff}
text{font:13px system-ui,-apple-system,"Segoe UI",sans-serif;fill:#1f2328}
.title{font-size:15px;font-weight:600}.small{font-size:11px}.faint{fill:#59636e}.on{fill:#fff}.dark{fill:#1f2328}
.line{stroke:#d1d9e0;fill:none}.strong{stroke:#1f2328;stroke-width:1.5;fill:none}.cell{fill:#eaeef2}
${SERIES.map((fill, i) => `.s${i}{fill:${fill}}`).join("")}
@media(prefers-color-scheme:dark){.ground{fill:#0d1117}text{fill:#f0f6fc}.dark{fill:#1f2328}.faint{fill:#9198a1}.on{fill:#fff}
.line{stroke:#3d444d}.strong{stroke:#f0f6fc}.cell{fill:#262c36}}`.replaceAll("\n", "");

export interface TextOptions {
  /** Classes of the style sheet: title, small, faint; on and dark are for text on fills of series, dark and light ones. */
  readonly is?: string;
  readonly anchor?: "start" | "middle" | "end";
}

/** An SVG that grows downwards; readable in light and dark. The same calls give the same text. */
export class Picture {
  readonly #parts: string[] = [];
  /** Where the next thing may begin. */
  y = TITLE_HEIGHT;
  readonly left = PADDING;
  readonly right = WIDTH - PADDING;

  /** @param title also what a screen reader says first */
  constructor(
    readonly title: string,
    private readonly description: string,
  ) {}

  rect(x: number, y: number, width: number, height: number, is: string, radius = 2): void {
    const sizes = `x="${round(x)}" y="${round(y)}" width="${round(width)}" height="${round(height)}"`;
    this.#parts.push(`<rect ${sizes} rx="${radius}" class="${is}"/>`);
  }

  line(x1: number, y1: number, x2: number, y2: number, is = "line"): void {
    this.#parts.push(
      `<line x1="${round(x1)}" y1="${round(y1)}" x2="${round(x2)}" y2="${round(y2)}" class="${is}"/>`,
    );
  }

  text(x: number, y: number, text: string, { is, anchor = "start" }: TextOptions = {}): void {
    const style = is ? ` class="${is}"` : "";
    const side = anchor === "start" ? "" : ` text-anchor="${anchor}"`;
    this.#parts.push(`<text x="${round(x)}" y="${round(y)}"${style}${side}>${escaped(text)}</text>`);
  }

  /** A line of small squares and what they stand for. */
  legend(entries: readonly (readonly [is: string, text: string])[]): void {
    let x = this.left;
    for (const [is, text] of entries) {
      this.rect(x, this.y + 2, 12, 12, is);
      this.text(x + 18, this.y + 12, text, { is: "small" });
      x += 34 + 6.2 * text.length;
    }
    this.y += 28;
  }

  /** A line above what belongs together. */
  heading(text: string): void {
    this.text(this.left, this.y + 12, text, { is: "faint" });
    this.y += 20;
  }

  /** A line of small print. */
  note(text: string): void {
    this.text(this.left, this.y + 12, text, { is: "small faint" });
    this.y += 18;
  }

  toString(): string {
    const height = round(this.y + 10);
    return [
      `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}" role="img">`,
      `<title>${escaped(this.title)}</title><desc>${escaped(this.description)}</desc><style>${STYLE}</style>`,
      `<rect width="${WIDTH}" height="${height}" rx="6" class="ground"/>`,
      `<text x="${PADDING}" y="28" class="title">${escaped(this.title)}</text>`,
      ...this.#parts,
      "</svg>\n",
    ].join("\n");
  }
}

export interface Bar {
  readonly label: string;
  /** Its parts, from the left; each in the fill of its place. */
  readonly parts: readonly number[];
  /** Written behind it. */
  readonly value: string;
  /** A line across it: a limit. */
  readonly mark?: number;
  /** The fill of the first part, where it is not that of its place. */
  readonly series?: number;
}

const BAR_HEIGHT = 20;
const BAR_STEP = 28;
const VALUE_WIDTH = 110;

/** Horizontal bars of one scale, below each other. */
export function drawBars(picture: Picture, bars: readonly Bar[], labelWidth = 250): void {
  const widest = Math.max(...bars.map(({ parts, mark = 0 }) => Math.max(total(parts), mark)));
  const start = picture.left + labelWidth;
  const scale = (picture.right - VALUE_WIDTH - start) / widest;
  for (const { label, parts, value, mark, series = 0 } of bars) {
    const { y } = picture;
    picture.text(start - 10, y + 15, label, { anchor: "end" });
    let x = start;
    for (const [i, part] of parts.entries()) {
      picture.rect(x, y, part * scale, BAR_HEIGHT, `s${i + series}`, 1);
      x += part * scale;
    }
    if (mark !== undefined)
      picture.line(start + mark * scale, y - 3, start + mark * scale, y + BAR_HEIGHT + 3, "strong");
    picture.text(Math.max(x, start + (mark ?? 0) * scale) + 8, y + 15, value, { is: "small" });
    picture.y += BAR_STEP;
  }
  picture.y += 6;
}

function total(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0);
}

/** Tenths of a pixel, so that sums of floats do not show. */
function round(value: number): number {
  return Math.round(value * 10) / 10;
}

function escaped(text: string): string {
  return text
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;");
}

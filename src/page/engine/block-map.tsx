import { useEffect, useRef, useState } from "preact/hooks";
import { blockOf } from "../../base/engine-view.ts";
import { useStore } from "../store.ts";
import { theme } from "../theme.ts";
import { palette } from "./colors.ts";
import { describePool, type EngineState } from "./engine-state.ts";

interface BlockMapProps {
  readonly state: EngineState;
  /** The sequence whose blocks stand out; undefined: all do. */
  readonly focus: number | undefined;
  readonly onFocus: (sequence: number | undefined) => void;
  /** Pixels that it may be high. */
  readonly height: number;
}

/** A map's cells: so many in a row, `size` pixels from one to the next. */
interface Layout {
  readonly columns: number;
  readonly size: number;
  readonly width: number;
  readonly height: number;
}

/**
 * The KV cache, a cell for each block: outlined where it is free, grey where free but cached, in its owner's colour where it is
 * held, paler while it is filled, with a mark where several hold it.
 */
export function BlockMap({ state, focus, onFocus, height }: BlockMapProps) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const frame = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(0);
  const [at, setAt] = useState<number | undefined>();
  const colors = useStore(theme);
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.floor(entry!.contentRect.width)));
    observer.observe(frame.current!);
    return () => observer.disconnect();
  }, []);
  const layout = layoutOf(state.blocks.length, width, height);
  useEffect(() => {
    if (canvas.current && width > 0) draw(canvas.current, state, layout, focus, at);
  }, [state, width, height, focus, at, colors]);
  const owners = ownersOf(state);
  const point = (block: number | undefined) => {
    setAt(block);
    onFocus(block === undefined ? undefined : owners.get(blockOf(state.blocks[block]!).slot));
  };
  const move = (event: KeyboardEvent) => {
    const { columns } = layout;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const next = at === undefined ? 0 : at + step;
    if (next >= 0 && next < state.blocks.length) point(next);
  };
  return (
    <div class="block-map" ref={frame}>
      {/* A picture that can be walked over. */}
      <div
        class="map-area"
        role="application"
        aria-roledescription="map of blocks"
        aria-label={`KV cache: ${summary(state)}`}
        aria-describedby="block-readout"
        // biome-ignore lint/a11y/noNoninteractiveTabindex: arrow keys go from block to block
        tabIndex={0}
        onKeyDown={move}
        onBlur={() => point(undefined)}
        onPointerLeave={() => point(undefined)}
        onPointerMove={(event) => {
          const column = Math.floor(event.offsetX / layout.size);
          const block = Math.floor(event.offsetY / layout.size) * layout.columns + column;
          const isIn = column < layout.columns && block >= 0 && block < state.blocks.length;
          point(isIn ? block : undefined);
        }}
      >
        <canvas ref={canvas} />
      </div>
      <p class="readout" id="block-readout" aria-live="polite">
        {at === undefined ? summary(state) : described(at, state, owners)}
      </p>
    </div>
  );
}

/** The legend of the map. */
export function BlockLegend() {
  return (
    <ul class="legend" aria-label="Legend">
      <li>
        <i class="cell free" /> free
      </li>
      <li>
        <i class="cell cached" /> cached
      </li>
      <li>
        <i class="cell used" /> held
      </li>
      <li>
        <i class="cell used filling" /> being filled
      </li>
      <li>
        <i class="cell used shared" /> shared
      </li>
    </ul>
  );
}

function layoutOf(count: number, width: number, height: number): Layout {
  let size = 20;
  const columnsAt = (pixels: number) => Math.max(1, Math.floor(width / pixels));
  while (size > 2 && Math.ceil(count / columnsAt(size)) * size > height) size--;
  const columns = Math.min(columnsAt(size), Math.max(1, count));
  return { columns, size, width, height: Math.ceil(count / columns) * size };
}

/** Sequences by their slots. */
function ownersOf({ running }: EngineState): ReadonlyMap<number, number> {
  return new Map(running.map(({ slot, sequence }) => [slot, sequence]));
}

function draw(
  canvas: HTMLCanvasElement,
  state: EngineState,
  { columns, size, width, height }: Layout,
  focus: number | undefined,
  at: number | undefined,
): void {
  const ratio = devicePixelRatio;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) {
    [canvas.width, canvas.height] = [w, h];
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d")!;
  const colors = palette(canvas);
  const owners = ownersOf(state);
  const gap = size >= 8 ? 2 : size >= 4 ? 1 : 0;
  const cell = size - gap;
  const round = size >= 8 ? 2 : 0;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  const focused = focus === undefined ? undefined : blocksOf(state, focus);
  let [fill, word, style, isShared] = ["", -1, "", false];
  for (let block = 0; block < state.blocks.length; block++) {
    const x = (block % columns) * size;
    const y = Math.floor(block / columns) * size;
    if (state.blocks[block] !== word) {
      word = state.blocks[block]!;
      const { holders, slot, isCached } = blockOf(word);
      const owner = owners.get(slot);
      isShared = holders > 1;
      if (holders === 0) style = isCached ? colors.cached : colors.free;
      else if (owner === undefined) style = colors.ending;
      else style = colors.owner(owner, isCached ? 1 : 0.55);
    }
    context.globalAlpha = focused && !focused.has(block) ? 0.25 : 1;
    if (style !== fill) {
      context.fillStyle = style;
      fill = style;
    }
    if (round > 0) {
      context.beginPath();
      context.roundRect(x, y, cell, cell, round);
      context.fill();
    } else context.fillRect(x, y, cell, cell);
    if (isShared && size >= 4) {
      const inner = Math.max(2, Math.round(cell / 3));
      const offset = (cell - inner) / 2;
      context.fillStyle = colors.mark;
      fill = colors.mark;
      context.fillRect(x + offset, y + offset, inner, inner);
    }
  }
  context.globalAlpha = 1;
  if (at === undefined) return;
  context.strokeStyle = colors.ink;
  context.lineWidth = 1.5;
  context.strokeRect(
    (at % columns) * size - 0.75,
    Math.floor(at / columns) * size - 0.75,
    cell + 1.5,
    cell + 1.5,
  );
}

/** The blocks of a sequence, those that it has from others among them. */
function blocksOf({ blocks, running, shared }: EngineState, sequence: number): ReadonlySet<number> {
  const slot = running.find((entry) => entry.sequence === sequence)?.slot;
  const found = new Set<number>();
  if (slot === undefined) return found;
  for (const [block, word] of blocks.entries()) if (blockOf(word).slot === slot) found.add(block);
  for (const [first, count] of shared.get(sequence) ?? [])
    for (let block = first; block < first + count; block++) found.add(block);
  return found;
}

function summary({ blocks, facts }: EngineState): string {
  let [held, cached, shared] = [0, 0, 0];
  for (const word of blocks) {
    const { holders, isCached } = blockOf(word);
    if (holders > 0) held++;
    else if (isCached) cached++;
    if (holders > 1) shared++;
  }
  const free = blocks.length - held - cached;
  return `${describePool(facts)}: ${held} held (${shared} shared), ${cached} cached, ${free} free`;
}

function described(
  block: number,
  { blocks, facts }: EngineState,
  owners: ReadonlyMap<number, number>,
): string {
  const { holders, slot, group, isCached } = blockOf(blocks[block]!);
  if (holders === 0) return `Block ${block}: free${isCached ? ", holds a prefix that can be found" : ""}`;
  const owner = owners.get(slot);
  const others = holders > 1 ? ` and ${holders - 1} more` : "";
  const by = owner === undefined ? "by one that has ended" : `by #${owner}`;
  const layers = facts.numGroups === undefined ? "" : `, for group ${group + 1} of layers`;
  return `Block ${block}: held ${by}${others}${layers}${isCached ? ", in the prefix cache" : ", being filled"}`;
}

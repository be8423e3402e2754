import { Component, type ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";

/** A value that components are drawn anew for when it is replaced. */
export class Store<T> {
  readonly #listeners = new Set<() => void>();
  #value: T;

  constructor(value: T) {
    this.#value = value;
  }

  get value(): T {
    return this.#value;
  }

  set value(value: T) {
    if (value === this.#value) return;
    this.#value = value;
    for (const listener of [...this.#listeners]) listener();
  }

  /** @returns a function that ends the calls. */
  subscribe(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}

/** The store's value, in a component. */
export function useStore<T>(store: Store<T>): T {
  const [, redraw] = useState<object>();
  useEffect(() => store.subscribe(() => redraw({})), [store]);
  return store.value;
}

/** Draws what is inside anew only when one of `of` is another than before. */
export class Unless extends Component<{
  readonly of: readonly unknown[];
  readonly children: () => ComponentChildren;
}> {
  override shouldComponentUpdate({ of }: { readonly of: readonly unknown[] }): boolean {
    return of.some((value, i) => value !== this.props.of[i]);
  }

  override render() {
    return this.props.children();
  }
}

/** A store whose value the browser keeps as JSON. What it kept that does not look like `initial` is forgotten. */
export function keptStore<T>(name: string, initial: T): Store<T> {
  const store = new Store(read(name, initial));
  store.subscribe(() => {
    try {
      localStorage.setItem(`octavo.${name}`, JSON.stringify(store.value));
    } catch {
      // Full, or not allowed: it lasts as long as the page.
    }
  });
  return store;
}

function read<T>(name: string, initial: T): T {
  try {
    const kept: unknown = JSON.parse(localStorage.getItem(`octavo.${name}`) ?? "null");
    return kept !== null && typeof kept === typeof initial ? (kept as T) : initial;
  } catch {
    return initial;
  }
}

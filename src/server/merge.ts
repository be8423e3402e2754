/** The items of all sources as they come. Leaving the loop early closes every source. */
export async function* merge<T>(sources: readonly AsyncIterable<T>[]): AsyncGenerator<T, void, undefined> {
  const iterators = sources.map((source) => source[Symbol.asyncIterator]());
  const ready: T[] = [];
  let open = iterators.length;
  let failure: { readonly error: unknown } | undefined;
  let wake = () => {};
  const pump = async (iterator: AsyncIterator<T>) => {
    try {
      for (let item = await iterator.next(); !item.done; item = await iterator.next()) {
        ready.push(item.value);
        wake();
      }
    } catch (error) {
      failure ??= { error };
    }
    open--;
    wake();
  };
  for (const iterator of iterators) void pump(iterator);
  try {
    for (;;) {
      const item = ready.shift();
      if (item !== undefined) yield item;
      else if (failure) throw failure.error;
      else if (open === 0) return;
      else
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
    }
  } finally {
    for (const iterator of iterators) void iterator.return?.();
  }
}

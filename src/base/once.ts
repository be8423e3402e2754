/** A function that gives what `create` makes when it is first called, the same each time. */
export function once<Made extends object>(create: () => Made): () => Made {
  let made: Made | undefined;
  return () => {
    made ??= create();
    return made;
  };
}

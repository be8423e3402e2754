/**
 * The value of a request's header; undefined without it. A proxy in front may add a copy of a header that is there
 * already: copies that are all the same count as one. Different values come as `Headers` joins them, with commas.
 */
export function headerOf(headers: Headers, name: string): string | undefined {
  const value = headers.get(name);
  if (value === null) return undefined;
  const copies = value.split(", ");
  return copies.every((copy) => copy === copies[0]) ? copies[0] : value;
}

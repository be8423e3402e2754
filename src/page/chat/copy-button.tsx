import { useState } from "preact/hooks";

/** A button that copies a text. @param what its name, for screen readers */
export function CopyButton({ text, what }: { readonly text: string; readonly what: string }) {
  const [label, setLabel] = useState("Copy");
  const copy = async () => {
    // Absent where the page comes by plain HTTP from another machine.
    const done = await navigator.clipboard?.writeText(text).then(
      () => true,
      () => false,
    );
    setLabel(done ? "Copied" : "Not allowed");
    setTimeout(() => setLabel("Copy"), 1500);
  };
  return (
    <button type="button" class="quiet" aria-label={`${label} ${what}`} onClick={copy}>
      {label}
    </button>
  );
}

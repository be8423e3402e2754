import { keptStore, Store } from "./store.ts";

export type ThemeChoice = "auto" | "light" | "dark";
export type Theme = "light" | "dark";

/** The user's choice; `auto`: the system's. */
export const themeChoice = keptStore<ThemeChoice>("theme", "auto");

/** The theme in effect. What is drawn with its colours on a canvas is drawn anew when it changes. */
export const theme = new Store<Theme>("light");

/** Puts the choice into effect, now and whenever it, or the system's, changes. */
export function applyTheme(): void {
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const { value } = themeChoice;
    const effective = value === "auto" ? (systemDark.matches ? "dark" : "light") : value;
    document.documentElement.dataset["theme"] = effective;
    theme.value = effective;
  };
  themeChoice.subscribe(apply);
  systemDark.addEventListener("change", apply);
  apply();
}

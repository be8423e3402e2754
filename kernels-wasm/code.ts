/** A routine of assembled code, by its distance from the code's beginning, with parameters at an address; see layout.ts. */
export declare function call(routine: i32, parameters: usize): void;

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  Assembler,
  Label,
  R8,
  R9,
  R10,
  R11,
  R12,
  R13,
  R14,
  R15,
  RAX,
  RBP,
  RBX,
  RCX,
  RDI,
  RDX,
  RSI,
  RSP,
  xmm,
  ymm,
  zmm,
} from "../../../../../src/backend/simd/x64/assembler.ts";
import { InvariantError } from "../../../../../src/base/errors.ts";

setDefaultTimeout(300_000);

/** Instructions as Intel writes them, how they are asked for, and their bytes as the GNU assembler has them (VEX in three bytes, EVEX with offsets of four). */
const INSTRUCTIONS: readonly (readonly [string, (asm: Assembler) => void, string])[] = [
  ["push rbx", (asm) => asm.push(RBX), "53"],
  ["push r12", (asm) => asm.push(R12), "41 54"],
  ["pop rbp", (asm) => asm.pop(RBP), "5d"],
  ["pop r15", (asm) => asm.pop(R15), "41 5f"],
  ["ret", (asm) => asm.ret(), "c3"],
  ["cpuid", (asm) => asm.cpuid(), "0f a2"],
  ["xgetbv", (asm) => asm.xgetbv(), "0f 01 d0"],
  ["mov rax, r14", (asm) => asm.mov(RAX, R14), "4c 89 f0"],
  ["mov r9, rdi", (asm) => asm.mov(R9, RDI), "49 89 f9"],
  ["mov ecx, 0x89abcdef", (asm) => asm.movImmediate(RCX, 0x89abcdef), "b9 ef cd ab 89"],
  ["mov r13d, 7", (asm) => asm.movImmediate(R13, 7), "41 bd 07 00 00 00"],
  ["mov eax, dword ptr [rdi]", (asm) => asm.load32(RAX, { base: RDI }), "8b 07"],
  ["mov r10d, dword ptr [rbp]", (asm) => asm.load32(R10, { base: RBP }), "44 8b 55 00"],
  ["mov edx, dword ptr [rsp+8]", (asm) => asm.load32(RDX, { base: RSP, offset: 8 }), "8b 54 24 08"],
  ["mov esi, dword ptr [r12-128]", (asm) => asm.load32(RSI, { base: R12, offset: -128 }), "41 8b 74 24 80"],
  [
    "mov ebx, dword ptr [r13+128]",
    (asm) => asm.load32(RBX, { base: R13, offset: 128 }),
    "41 8b 9d 80 00 00 00",
  ],
  ["mov dword ptr [rdi+12], r15d", (asm) => asm.store32({ base: RDI, offset: 12 }, R15), "44 89 7f 0c"],
  ["lea rbp, [r12+r13*1]", (asm) => asm.lea(RBP, { base: R12, index: R13 }), "4b 8d 2c 2c"],
  [
    "lea r11, [rax+rcx*4-4096]",
    (asm) => asm.lea(R11, { base: RAX, index: RCX, scale: 4, offset: -4096 }),
    "4c 8d 9c 88 00 f0 ff ff",
  ],
  ["lea rdx, [r13+r9*8]", (asm) => asm.lea(RDX, { base: R13, index: R9, scale: 8 }), "4b 8d 54 cd 00"],
  ["add r8, rsi", (asm) => asm.add(R8, RSI), "49 01 f0"],
  ["sub rcx, r9", (asm) => asm.sub(RCX, R9), "4c 29 c9"],
  ["cmp r14, rax", (asm) => asm.cmp(R14, RAX), "49 39 c6"],
  ["add rbx, 1000", (asm) => asm.addImmediate(RBX, 1000), "48 81 c3 e8 03 00 00"],
  ["add r12, 1000", (asm) => asm.addImmediate(R12, 1000), "49 81 c4 e8 03 00 00"],
  ["sub r14, 1000", (asm) => asm.subImmediate(R14, 1000), "49 81 ee e8 03 00 00"],
  ["cmp rdx, 1000", (asm) => asm.cmpImmediate(RDX, 1000), "48 81 fa e8 03 00 00"],
  ["shl rcx, 36", (asm) => asm.shl(RCX, 36), "48 c1 e1 24"],
  ["shr r9, 63", (asm) => asm.shr(R9, 63), "49 c1 e9 3f"],
  ["cmova rax, rbp", (asm) => asm.moveIf("above", RAX, RBP), "48 0f 47 c5"],
  ["cmovb r14, rcx", (asm) => asm.moveIf("below", R14, RCX), "4c 0f 42 f1"],
  ["jmp rdx", (asm) => asm.jumpTo(RDX), "ff e2"],
  ["jmp r9", (asm) => asm.jumpTo(R9), "41 ff e1"],
  ["prefetcht1 [r13]", (asm) => asm.prefetch({ base: R13 }), "41 0f 18 55 00"],
  ["vzeroupper", (asm) => asm.vzeroupper(), "c5 f8 77"],
  [
    "vmovups ymm3, [rax+r9*2+32]",
    (asm) => asm.vmovups(ymm(3), { base: RAX, index: R9, scale: 2, offset: 32 }),
    "c4 a1 7c 10 5c 48 20",
  ],
  ["vmovups ymm12, [r12]", (asm) => asm.vmovups(ymm(12), { base: R12 }), "c4 41 7c 10 24 24"],
  [
    "vmovups zmm28, [r8+r11*4+64]",
    (asm) => asm.vmovups(zmm(28), { base: R8, index: R11, scale: 4, offset: 64 }),
    "62 01 7c 48 10 a4 98 40 00 00 00",
  ],
  ["vmovups zmm7, [rbp]", (asm) => asm.vmovups(zmm(7), { base: RBP }), "62 f1 7c 48 10 bd 00 00 00 00"],
  [
    "vmovups [rbx+480], ymm9",
    (asm) => asm.vmovupsStore({ base: RBX, offset: 480 }, ymm(9)),
    "c4 61 7c 11 8b e0 01 00 00",
  ],
  [
    "vmovups [r10+r9*1], zmm17",
    (asm) => asm.vmovupsStore({ base: R10, index: R9 }, zmm(17)),
    "62 81 7c 48 11 0c 0a",
  ],
  [
    "vbroadcastss ymm4, [r12+r13*2]",
    (asm) => asm.vbroadcastss(ymm(4), { base: R12, index: R13, scale: 2 }),
    "c4 82 7d 18 24 6c",
  ],
  [
    "vbroadcastss zmm11, [rbp+r13*2+98304]",
    (asm) => asm.vbroadcastss(zmm(11), { base: RBP, index: R13, scale: 2, offset: 98304 }),
    "62 32 7d 48 18 9c 6d 00 80 01 00",
  ],
  ["vmulps ymm12, ymm13, ymm4", (asm) => asm.vmulps(ymm(12), ymm(13), ymm(4)), "c4 61 14 59 e4"],
  ["vmulps zmm24, zmm1, zmm15", (asm) => asm.vmulps(zmm(24), zmm(1), zmm(15)), "62 41 74 48 59 c7"],
  [
    "vfmadd231ps ymm0, ymm14, [r8+r9*8+96]",
    (asm) => asm.vfmadd231ps(ymm(0), ymm(14), { base: R8, index: R9, scale: 8, offset: 96 }),
    "c4 82 0d b8 44 c8 60",
  ],
  ["vfmadd231ps ymm11, ymm15, ymm13", (asm) => asm.vfmadd231ps(ymm(11), ymm(15), ymm(13)), "c4 42 05 b8 dd"],
  [
    "vfmadd231ps zmm23, zmm30, zmm29",
    (asm) => asm.vfmadd231ps(zmm(23), zmm(30), zmm(29)),
    "62 82 0d 40 b8 fd",
  ],
  ["vfmadd231ps zmm8, zmm9, zmm16", (asm) => asm.vfmadd231ps(zmm(8), zmm(9), zmm(16)), "62 32 35 48 b8 c0"],
  ["vfmadd213ps ymm14, ymm4, ymm8", (asm) => asm.vfmadd213ps(ymm(14), ymm(4), ymm(8)), "c4 42 5d a8 f0"],
  ["vfmadd213ps zmm4, zmm15, zmm8", (asm) => asm.vfmadd213ps(zmm(4), zmm(15), zmm(8)), "62 d2 05 48 a8 e0"],
  ["vpxor ymm1, ymm1, ymm1", (asm) => asm.vpxor(ymm(1), ymm(1), ymm(1)), "c4 e1 75 ef c9"],
  ["vpxord zmm31, zmm31, zmm31", (asm) => asm.vpxor(zmm(31), zmm(31), zmm(31)), "62 01 05 40 ef ff"],
  ["vpand ymm14, ymm12, ymm15", (asm) => asm.vpand(ymm(14), ymm(12), ymm(15)), "c4 41 1d db f7"],
  ["vpand xmm12, xmm12, xmm15", (asm) => asm.vpand(xmm(12), xmm(12), xmm(15)), "c4 41 19 db e7"],
  ["vpmaxsd ymm0, ymm0, ymm9", (asm) => asm.vpmaxsd(ymm(0), ymm(0), ymm(9)), "c4 c2 7d 3d c1"],
  ["vpmaxsd zmm0, zmm0, zmm9", (asm) => asm.vpmaxsd(zmm(0), zmm(0), zmm(9)), "62 d2 7d 48 3d c1"],
  [
    "vpmovzxbd ymm12, [rax+r9*1+8]",
    (asm) => asm.vpmovzxbd(ymm(12), { base: RAX, index: R9, offset: 8 }),
    "c4 22 7d 31 64 08 08",
  ],
  [
    "vpmovzxbd zmm12, [rdx+r9*1]",
    (asm) => asm.vpmovzxbd(zmm(12), { base: RDX, index: R9 }),
    "62 32 7d 48 31 24 0a",
  ],
  [
    "vpmovzxbw xmm12, [rcx+r9*1+8]",
    (asm) => asm.vpmovzxbw(xmm(12), { base: RCX, index: R9, offset: 8 }),
    "c4 22 79 30 64 09 08",
  ],
  [
    "vpmovzxbw ymm12, [rbx+r9*1]",
    (asm) => asm.vpmovzxbw(ymm(12), { base: RBX, index: R9 }),
    "c4 22 7d 30 24 0b",
  ],
  [
    "vpmovzxwd ymm12, [rax+r9*1+16]",
    (asm) => asm.vpmovzxwd(ymm(12), { base: RAX, index: R9, offset: 16 }),
    "c4 22 7d 33 64 08 10",
  ],
  [
    "vpmovzxwd zmm0, [rax+r9*2]",
    (asm) => asm.vpmovzxwd(zmm(0), { base: RAX, index: R9, scale: 2 }),
    "62 b2 7d 48 33 04 48",
  ],
  ["vcvtph2ps ymm12, xmm12", (asm) => asm.vcvtph2ps(ymm(12), xmm(12)), "c4 42 7d 13 e4"],
  ["vcvtph2ps zmm12, ymm12", (asm) => asm.vcvtph2ps(zmm(12), ymm(12)), "62 52 7d 48 13 e4"],
  ["vcvtph2ps ymm5, [rsi]", (asm) => asm.vcvtph2ps(ymm(5), { base: RSI }), "c4 e2 7d 13 2e"],
  ["vcvtdq2ps ymm14, ymm12", (asm) => asm.vcvtdq2ps(ymm(14), ymm(12)), "c4 41 7c 5b f4"],
  ["vcvtdq2ps zmm1, zmm21", (asm) => asm.vcvtdq2ps(zmm(1), zmm(21)), "62 b1 7c 48 5b cd"],
  ["vpermps ymm14, ymm12, ymm4", (asm) => asm.vpermps(ymm(14), ymm(12), ymm(4)), "c4 62 1d 16 f4"],
  ["vpermps zmm14, zmm13, zmm7", (asm) => asm.vpermps(zmm(14), zmm(13), zmm(7)), "62 72 15 48 16 f7"],
  ["vpslld ymm15, ymm12, 28", (asm) => asm.vpslld(ymm(15), ymm(12), 28), "c4 c1 05 72 f4 1c"],
  ["vpslld zmm12, zmm12, 16", (asm) => asm.vpslld(zmm(12), zmm(12), 16), "62 d1 1d 48 72 f4 10"],
  ["vpsrld ymm12, ymm13, 4", (asm) => asm.vpsrld(ymm(12), ymm(13), 4), "c4 c1 1d 72 d5 04"],
  ["vpsrld zmm20, zmm13, 4", (asm) => asm.vpsrld(zmm(20), zmm(13), 4), "62 d1 5d 40 72 d5 04"],
  ["vpsllw ymm12, ymm12, 8", (asm) => asm.vpsllw(ymm(12), ymm(12), 8), "c4 c1 1d 71 f4 08"],
  ["vpsraw xmm12, xmm12, 1", (asm) => asm.vpsraw(xmm(12), xmm(12), 1), "c4 c1 19 71 e4 01"],
  [
    "vpbroadcastw xmm3, word ptr [rbx+2]",
    (asm) => asm.vpbroadcastw(xmm(3), { base: RBX, offset: 2 }),
    "c4 e2 79 79 5b 02",
  ],
  ["vpmovsxbd ymm0, [rax+8]", (asm) => asm.vpmovsxbd(ymm(0), { base: RAX, offset: 8 }), "c4 e2 7d 21 40 08"],
  ["vpsrad ymm1, ymm13, 24", (asm) => asm.vpsrad(ymm(1), ymm(13), 24), "c4 c1 75 72 e5 18"],
  ["vaddps ymm1, ymm1, ymm12", (asm) => asm.vaddps(ymm(1), ymm(1), ymm(12)), "c4 c1 74 58 cc"],
  ["vhaddps ymm0, ymm9, ymm2", (asm) => asm.vhaddps(ymm(0), ymm(9), ymm(2)), "c4 e1 37 7c c2"],
  [
    "vperm2f128 ymm2, ymm0, ymm14, 0x31",
    (asm) => asm.vperm2f128(ymm(2), ymm(0), ymm(14), 1, 3),
    "c4 c3 7d 06 d6 31",
  ],
  ["vextractf64x4 ymm9, zmm17, 1", (asm) => asm.vextractf64x4(ymm(9), zmm(17)), "62 c3 fd 48 1b c9 01"],
];

describe("an instruction's bytes", () => {
  test.each(INSTRUCTIONS)("%s", (_, emit, bytes) => {
    const asm = new Assembler();
    emit(asm);
    expect(Buffer.from(asm.finish()).toString("hex")).toBe(bytes.replaceAll(" ", ""));
  });
});

test("jumps and constants are as far away as they are", () => {
  const asm = new Assembler();
  const [end, data] = [new Label(), new Label()];
  const start = asm.here();
  asm.jumpIf("notEqual", end);
  asm.vmovups(ymm(1), { label: data });
  asm.jump(start);
  asm.bind(end);
  asm.data(data, Int32Array.of(0x01020304));
  const code = asm.finish();
  // jne +14; vmovups ymm1, [rip + 49]; jmp −20
  expect(Buffer.from(code.subarray(0, 20)).toString("hex")).toBe("0f850e000000c4e17c100d31000000e9ecffffff");
  expect(code.subarray(64)).toEqual(Uint8Array.of(4, 3, 2, 1));
});

test("a label has one place", () => {
  const asm = new Assembler();
  asm.jump(new Label());
  expect(() => asm.finish()).toThrow(InvariantError);
  expect(() => asm.bind(asm.here())).toThrow(InvariantError);
});

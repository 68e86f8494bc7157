#include "textflag.h"

// Two SHA-256 computations, a group of four rounds of one after a group of the
// other; the core overlaps them.
//
//   AX  round constants        CX  blocks left
//   SI  input of a             DI  input of b
//   R8  state of a             R9  state of b
//   X0  message plus constants (implied operand of SHA256RNDS2)
//   X1, X2   state of a        X7, X8    state of b
//   X3-X6    message of a      X9-X12    message of b
//   X13 scratch                X15 byte order

// Four rounds with the message words in m.
#define ROUNDS(i, m, s0, s1) \
	MOVO        m, X0;             \
	PADDL       (16*i)(AX), X0;    \
	SHA256RNDS2 X0, s0, s1;        \
	PSHUFD      $0x0e, X0, X0;     \
	SHA256RNDS2 X0, s1, s0

// Finish the message words that follow m, which stand half done in next.
#define NEXT(m, previous, next) \
	MOVO       m, X13;             \
	PALIGNR    $4, previous, X13;  \
	PADDL      X13, next;          \
	SHA256MSG2 m, next

#define LOAD(i, from, m) \
	MOVOU  (16*i)(from), m; \
	PSHUFB X15, m

// The first sixteen rounds take the block itself.
#define FIRST(i, from, m, s0, s1) \
	LOAD(i, from, m); \
	ROUNDS(i, m, s0, s1)

// The middle groups also prepare the words four groups ahead.
#define MIDDLE(i, m, previous, next, s0, s1) \
	ROUNDS(i, m, s0, s1);    \
	NEXT(m, previous, next); \
	SHA256MSG1 m, previous

// func blocks2(a, b *[8]uint32, p, q *byte, n int)
TEXT ·blocks2(SB), NOSPLIT, $0-40
	MOVQ  a+0(FP), R8
	MOVQ  b+8(FP), R9
	MOVQ  p+16(FP), SI
	MOVQ  q+24(FP), DI
	MOVQ  n+32(FP), CX
	LEAQ  k<>(SB), AX
	MOVOU order<>(SB), X15
	MOVOU 0(R8), X1
	MOVOU 16(R8), X2
	MOVOU 0(R9), X7
	MOVOU 16(R9), X8
	TESTQ CX, CX
	JLE   done

block:
	FIRST(0, SI, X3, X1, X2)
	FIRST(0, DI, X9, X7, X8)
	FIRST(1, SI, X4, X1, X2)
	SHA256MSG1 X4, X3
	FIRST(1, DI, X10, X7, X8)
	SHA256MSG1 X10, X9
	FIRST(2, SI, X5, X1, X2)
	SHA256MSG1 X5, X4
	FIRST(2, DI, X11, X7, X8)
	SHA256MSG1 X11, X10
	LOAD(3, SI, X6)
	MIDDLE(3, X6, X5, X3, X1, X2)
	LOAD(3, DI, X12)
	MIDDLE(3, X12, X11, X9, X7, X8)
	MIDDLE(4, X3, X6, X4, X1, X2)
	MIDDLE(4, X9, X12, X10, X7, X8)
	MIDDLE(5, X4, X3, X5, X1, X2)
	MIDDLE(5, X10, X9, X11, X7, X8)
	MIDDLE(6, X5, X4, X6, X1, X2)
	MIDDLE(6, X11, X10, X12, X7, X8)
	MIDDLE(7, X6, X5, X3, X1, X2)
	MIDDLE(7, X12, X11, X9, X7, X8)
	MIDDLE(8, X3, X6, X4, X1, X2)
	MIDDLE(8, X9, X12, X10, X7, X8)
	MIDDLE(9, X4, X3, X5, X1, X2)
	MIDDLE(9, X10, X9, X11, X7, X8)
	MIDDLE(10, X5, X4, X6, X1, X2)
	MIDDLE(10, X11, X10, X12, X7, X8)
	MIDDLE(11, X6, X5, X3, X1, X2)
	MIDDLE(11, X12, X11, X9, X7, X8)
	MIDDLE(12, X3, X6, X4, X1, X2)
	MIDDLE(12, X9, X12, X10, X7, X8)
	ROUNDS(13, X4, X1, X2)
	NEXT(X4, X3, X5)
	ROUNDS(13, X10, X7, X8)
	NEXT(X10, X9, X11)
	ROUNDS(14, X5, X1, X2)
	NEXT(X5, X4, X6)
	ROUNDS(14, X11, X7, X8)
	NEXT(X11, X10, X12)
	ROUNDS(15, X6, X1, X2)
	ROUNDS(15, X12, X7, X8)

	// Add the state the block began with, which memory still has.
	MOVOU 0(R8), X13
	PADDL X13, X1
	MOVOU X1, 0(R8)
	MOVOU 16(R8), X13
	PADDL X13, X2
	MOVOU X2, 16(R8)
	MOVOU 0(R9), X13
	PADDL X13, X7
	MOVOU X7, 0(R9)
	MOVOU 16(R9), X13
	PADDL X13, X8
	MOVOU X8, 16(R9)

	ADDQ $64, SI
	ADDQ $64, DI
	DECQ CX
	JNE  block

done:
	RET

// func hasSHA() bool
TEXT ·hasSHA(SB), NOSPLIT, $0-1
	MOVL  $0, AX
	CPUID
	CMPL  AX, $7
	JLT   none
	MOVL  $7, AX
	MOVL  $0, CX
	CPUID
	SHRL  $29, BX
	ANDL  $1, BX
	MOVB  BX, ret+0(FP)
	RET

none:
	MOVB $0, ret+0(FP)
	RET

// Reverses the bytes of each 32-bit word.
DATA order<>+0(SB)/8, $0x0405060700010203
DATA order<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL order<>(SB), RODATA|NOPTR, $16

// The round constants of SHA-256 (FIPS 180-4, section 4.2.2).
DATA k<>+0(SB)/8, $0x71374491428a2f98
DATA k<>+8(SB)/8, $0xe9b5dba5b5c0fbcf
DATA k<>+16(SB)/8, $0x59f111f13956c25b
DATA k<>+24(SB)/8, $0xab1c5ed5923f82a4
DATA k<>+32(SB)/8, $0x12835b01d807aa98
DATA k<>+40(SB)/8, $0x550c7dc3243185be
DATA k<>+48(SB)/8, $0x80deb1fe72be5d74
DATA k<>+56(SB)/8, $0xc19bf1749bdc06a7
DATA k<>+64(SB)/8, $0xefbe4786e49b69c1
DATA k<>+72(SB)/8, $0x240ca1cc0fc19dc6
DATA k<>+80(SB)/8, $0x4a7484aa2de92c6f
DATA k<>+88(SB)/8, $0x76f988da5cb0a9dc
DATA k<>+96(SB)/8, $0xa831c66d983e5152
DATA k<>+104(SB)/8, $0xbf597fc7b00327c8
DATA k<>+112(SB)/8, $0xd5a79147c6e00bf3
DATA k<>+120(SB)/8, $0x1429296706ca6351
DATA k<>+128(SB)/8, $0x2e1b213827b70a85
DATA k<>+136(SB)/8, $0x53380d134d2c6dfc
DATA k<>+144(SB)/8, $0x766a0abb650a7354
DATA k<>+152(SB)/8, $0x92722c8581c2c92e
DATA k<>+160(SB)/8, $0xa81a664ba2bfe8a1
DATA k<>+168(SB)/8, $0xc76c51a3c24b8b70
DATA k<>+176(SB)/8, $0xd6990624d192e819
DATA k<>+184(SB)/8, $0x106aa070f40e3585
DATA k<>+192(SB)/8, $0x1e376c0819a4c116
DATA k<>+200(SB)/8, $0x34b0bcb52748774c
DATA k<>+208(SB)/8, $0x4ed8aa4a391c0cb3
DATA k<>+216(SB)/8, $0x682e6ff35b9cca4f
DATA k<>+224(SB)/8, $0x78a5636f748f82ee
DATA k<>+232(SB)/8, $0x8cc7020884c87814
DATA k<>+240(SB)/8, $0xa4506ceb90befffa
DATA k<>+248(SB)/8, $0xc67178f2bef9a3f7
GLOBL k<>(SB), RODATA|NOPTR, $256

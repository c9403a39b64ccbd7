/* SPDX-License-Identifier: MIT */
/* Interpreters: Lua with programs of ours, and a small byte code of our own (one switch, one indirect jump a step). */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#include "work.h"

static const char program[] =
	"local n = ...\n"
	"local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end\n"
	"local sum = fib(n)\n"
	"local t = {}\n"
	"for i = 1, n * 1500 do t[i] = (i * 7919) % 10007 end\n"
	"table.sort(t)\n"
	"for i = 1, #t, 3 do sum = sum + t[i] * i end\n"
	"local parts = {}\n"
	"for i = 1, n * 300 do parts[#parts + 1] = string.format('%d:%s', i, ('x'):rep(i % 7)) end\n"
	"local s = table.concat(parts, ',')\n"
	"for a, b in s:gmatch('(%d+):(x*)') do sum = sum + tonumber(a) * #b end\n"
	"local point = {} point.__index = point\n"
	"function point:add(o) return setmetatable({ x = self.x + o.x, y = self.y + o.y }, point) end\n"
	"local p, q = setmetatable({ x = 0, y = 0 }, point), setmetatable({ x = 1, y = 2 }, point)\n"
	"for i = 1, n * 2000 do p = p:add(q) end\n"
	"return sum + p.x * 3 + p.y\n";

uint64_t work_lua(long n)
{
	lua_State *l = luaL_newstate();
	uint64_t sum;

	luaL_openlibs(l);
	work_begin();
	if (luaL_loadstring(l, program))
		work_fail("lua");
	lua_pushinteger(l, n);
	if (lua_pcall(l, 1, 1, 0))
		work_fail(lua_tostring(l, -1));
	sum = lua_tointeger(l, -1);
	lua_close(l);
	work_end(n);
	return sum;
}

enum { PUSH, ADD, SUB, MUL, XOR, SHR, DUP, SWAP, OVER, DROP, LOAD, STORE, JNZ, END };

uint64_t work_bytecode(long n)
{
	/* while (--m[0]) m[1] = (m[1] * 5 + m[0] ^ m[1] >> 7) - m[2], m[2] ^= m[1]; */
	static const uint8_t code[] = {
		PUSH, 1, LOAD, DUP, PUSH, 5, MUL, PUSH, 0, LOAD, ADD, SWAP, PUSH, 7, SHR, XOR,
		PUSH, 2, LOAD, SUB, DUP, PUSH, 1, STORE, PUSH, 2, LOAD, XOR, PUSH, 2, STORE,
		PUSH, 0, LOAD, PUSH, 1, SUB, DUP, PUSH, 0, STORE, JNZ, END,
	};
	uint64_t stack[16] = { 0 }, m[8] = { n, 1, 2 }, *sp = stack;
	const uint8_t *pc = code;

	work_begin();
	for (;;) {
		switch (*pc++) {
		case PUSH: *++sp = *pc++; break;
		case ADD: sp[-1] += sp[0]; sp--; break;
		case SUB: sp[-1] -= sp[0]; sp--; break;
		case MUL: sp[-1] *= sp[0]; sp--; break;
		case XOR: sp[-1] ^= sp[0]; sp--; break;
		case SHR: sp[-1] >>= sp[0] & 63; sp--; break;
		case DUP: sp[1] = sp[0]; sp++; break;
		case SWAP: { uint64_t t = sp[0]; sp[0] = sp[-1]; sp[-1] = t; break; }
		case OVER: sp[1] = sp[-1]; sp++; break;
		case DROP: sp--; break;
		case LOAD: sp[0] = m[sp[0] & 7]; break;
		case STORE: m[sp[0] & 7] = sp[-1]; sp -= 2; break;
		case JNZ: if (*sp--) pc = code; break;
		case END:
			work_end(n);
			return mix(m[1], m[2]);
		}
	}
}

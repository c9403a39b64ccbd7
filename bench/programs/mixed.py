# SPDX-License-Identifier: MIT
# Classes, dictionaries, generators, regular expressions, JSON, big integers, floats.
import json
import re
import zlib


class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y

    def step(self, other):
        return Point((self.x * 3 + other.y) % 1009, (self.y + other.x) % 1013)


def primes(n):
    sieve = bytearray([1]) * n
    for i in range(2, n):
        if sieve[i]:
            yield i
            sieve[i * i::i] = bytes(len(range(i * i, n, i)))


text = open("text", encoding="ascii").read()[:200000]
count = {}
for word in re.findall(r"[a-z]+", text):
    count[word] = count.get(word, 0) + 1
top = sorted(count.items(), key=lambda item: (-item[1], item[0]))[:50]
p, q = Point(1, 2), Point(3, 4)
for _ in range(15000):
    p, q = q.step(p), p
data = json.loads(json.dumps({"top": top, "list": list(range(5000))}))
print(top[:5], p.x, q.y, sum(primes(30000)), sum(data["list"]))
print(pow(3, 1500) % 1000007, sum(i * 0.5 for i in range(30000)), zlib.crc32(text.encode()))

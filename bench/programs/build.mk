# SPDX-License-Identifier: MIT
# A build, from preprocessed sources to an archive: a compiler and an assembler a file, make, the shell, ar.
units := compress hash sort text
out := out

.DELETE_ON_ERROR:
all: $(out)/programs.a
	sha256sum <$<

$(out)/%.s: %.i
	./cc1 -quiet -fpreprocessed -O1 $< -o $@

$(out)/%.o: $(out)/%.s
	as $< -o $@

$(out)/programs.a: $(units:%=$(out)/%.o)
	rm -f $@
	ar rcD $@ $^

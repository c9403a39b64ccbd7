/* SPDX-License-Identifier: MIT */
/* Linked statically: what softkvm(1) must refuse. */
int main(void)
{
	return 0;
}

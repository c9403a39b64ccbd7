/* SPDX-License-Identifier: MIT */
/* What the exec benchmark starts. */
int main(void)
{
	return 0;
}

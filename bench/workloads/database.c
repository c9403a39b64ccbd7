/* SPDX-License-Identifier: MIT */
/* SQLite in memory: rows, an index, joins and sums. */
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>

#include "work.h"

static int take(void *sum, int n, char **value, char **name)
{
	(void)name;
	for (int i = 0; i < n; i++)
		*(uint64_t *)sum = mix(*(uint64_t *)sum, value[i] ? strtoul(value[i], NULL, 10) : 0);
	return 0;
}

uint64_t work_sqlite(long n)
{
	char sql[400];
	uint64_t sum = 0;
	sqlite3 *db;

	if (sqlite3_open(":memory:", &db))
		work_fail("sqlite");
	snprintf(sql, sizeof(sql),
		 "create table t(a integer primary key, b int, c text);"
		 "with recursive r(i) as (select 1 union all select i + 1 from r where i < %ld)"
		 "insert into t select i, i * 7919 %% 10007, 'row ' || (i * 31 %% 977) from r;"
		 "create index tb on t(b); create index tc on t(c);", n);
	work_begin();
	if (sqlite3_exec(db, sql, NULL, NULL, NULL) ||
	    sqlite3_exec(db, "select c, count(*), sum(b) from t group by c order by 3, 1;"
			 "select sum(x.b * y.a) from t x join t y on x.b = y.a where x.c like '%9%';"
			 "update t set b = b + 1 where c > 'row 5'; delete from t where b % 3 = 0;"
			 "select count(*), sum(b), sum(length(c)) from t;", take, &sum, NULL))
		work_fail(sqlite3_errmsg(db));
	sqlite3_close(db);
	work_end(n);
	return sum;
}

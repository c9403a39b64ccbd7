-- SPDX-License-Identifier: MIT
create table w(i integer primary key, a int, b text);
with recursive r(i) as (select 1 union all select i + 1 from r where i < 20000)
insert into w select i, i * 31 % 1009, printf('%d-%s', i % 97, hex(i)) from r;
create index wa on w(a);
select a, count(*), max(b) from w group by a order by 2 desc, 1 limit 10;
select sum(x.i) from w x join w y on x.a = y.i where y.b like '%3%';
select count(distinct b), avg(length(b)) from w;

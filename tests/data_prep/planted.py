"""Private data as people write it, each between « and », and what only looks like it.

All of it is made up, or is of the ranges and examples that standards keep for such use.
"""

from __future__ import annotations

PLANTED = {
    "email": """
Write to «info@müller.de» before Friday.
Her address was «müller@example.com».
Mail «o'neil@example.com» or «d'arcy.j@example.org», please.
From: "Jane Doe" <«jane.doe+news@mail.example.co.uk»>
'«me@example.org»' is in quotes, u'«me@example.org»' too
mailto:«sales-team@my-company.example.com»?subject=hello
Адрес: «почта@пример.рф», в теме письма имя.
Γράψτε στο «nikos@παράδειγμα.gr».
he wrote '«o'brien@example.ie»'
see «j_smith%work@dept.example.edu».
联系«wang@example.cn»或致电
(«a@b.io»); «x@xn--mller-kva.de»; «y@example.xn--p1ai»
password reset for «first.last@sub.sub2.example.museum»...
jane dot doe at «example dot org»
{"user":"«kim@example.kr»","id":7}
José wrote as «josé.peña@correo.es»
https://«user@example.com»/path
""",
    "phone": """
Call «1-800-555-0199» toll free.
Call «1 (800) 555-0199», or «1.800.555.0199».
My number is «(212) 555-0187», or «212-555-0187», or «212.555.0187».
London: «+44 20 7946 0958», with the trunk digit «+44 (0)20 7946 0958».
«+442079460958» and «+1 212 555 0187» and «+12125550187»
Berlin «+49 30 23125-000» or «+49 (30) 23125 000», fax «+49 30/23125001»
Paris «+33 1 99 00 12 34».
Zürich «+41-44-668-18-00»; Wien «+43 1 5850850».
Tel:«+55 11 96123-4567» (celular)
手机«+86 131 2345 6789»,明天见
Moscow «+7 (495) 123-45-67».
India «+91 98765 43210», Japan «+81-3-1234-5678», Korea «+82 2-312-3456»
«+61 2 5550 1234» in 2024
in the table | «(907) 555-0123» |
Sydney office 02 5550 1234 has no country's code: «02 5550 1234»
in Paris one writes «01 99 00 12 34»
""",
    "ip": """
The server at «8.8.8.8» answered.
«203.0.114.7» - - [10/Oct/2000:13:55:36 -0700] "GET / HTTP/1.0" 200
from «151.101.1.69», port 443; http://«93.184.216.34»/index.html
ssh root@«185.199.108.153»
connect «1.1.1.1»:53
resolver «2001:4860:4860::8888» and «2606:4700:4700::1111».
[«2a00:1450:4001:81b::200e»]:443
ping «91.198.174.192» and «208.80.154.224»
{"ip": "«52.95.110.1»"}
the address «172.217.16.142».
client=«81.2.69.142»
visitor 81[.]2[.]69[.]160 was logged: «81[.]2[.]69[.]160»
""",
    "card": """
Pay with «4111 1111 1111 1111» or «4111.1111.1111.1111» or «4111-1111-1111-1111».
«4012888888881881», «5555555555554444»; «5105 1051 0510 5100».
Amex «3782 822463 10005» and «3714-496353-98431» and «378282246310005»
Discover: «6011.1111.1111.1117», JCB «3530111333300000», Diners «3056 930902 5904»
«6200000000000005» «2223003122003222» «4222222222222»
card no. «4111 1111 1111 1111».
Number:«5105105105105100»
in two halves «41111111 11111111»
""",
    "iban": """
IBAN: «GB29 NWBK 6016 1331 9268 19».
«DE89370400440532013000» and «de89370400440532013000»
«de89 3704 0044 0532 0130 00» or «DE89-3704-0044-0532-0130-00»
«FR14 2004 1010 0505 0001 3M02 606» (France)
«CH93 0076 2011 6238 5295 7», «AT61 1904 3002 3457 3201»
«nl91abna0417164300», «BE68 5390 0754 7034»
«ES91 2100 0418 4502 0005 1332» / «IT60X0542811101000000123456»
«PL61 1090 1014 0000 0712 1981 2874»
«SE45 5000 0000 0583 9825 7466» «NO93 8601 1117 947»
«PT50 0002 0123 1234 5678 9015 4», «MT84MALT011000012345MTLCAST001S»
Konto «DE89 3704 0044 0532 0130 00»
the bank's own form «DE 89 3704 0044 0532 0130 00»
""",
}

NOTHING = """
x@w.transpose is a product of matrices
| 3.36.10.0 | of a table of versions
order 4539578763621486 passes the check of a card by chance
+49 1234567 units more than before
+4294967296 +2147483648 +65536 +16777216 +1073741824 +17179869184 +18446744073709551616 +281474976710656
the offsets +134217728, +268435456, +4294967295 and -2147483648
+1000000000 points, +12345678 more, +999 12 34 56 78
version 1.2.3.4 of the driver, v 4.3.2.1, Version: 10.2.19.4
the 1.2.3.4 release; the 8.0.0.1 build; 9.1.2.3 (beta)
SemVer 1.2.3.4 and versions 1.2.3.4 and 1.2.3.5, or 1.2.3.6
Release 12.2.0.1 and build 14.0.1.9 were pulled
pip install thing==1.2.3.4 other>=2.0.0.1
thing-1.2.3.4.tar.gz and thing_5.6.7.8 and Opera/9.80.1.2
see Section 4.1.2.3, Chapter 2.3.4.5, Table 5.1.1.2
3.3.0.0  # Language release
v1.2.3.4-rc1
10.0.0.1, 192.168.1.254, 127.0.0.1, 172.16.0.9, 224.0.0.1, 0.0.0.0, 255.255.255.255
OID 1.3.6.1 and 1.3.6.1.4.1.311
::1, fe80::1, 2001:db8::1, std::vector, a::b::c
12:30:00, 1:2:3:4, at 10:15:30.5
00:1a:2b:3c:4d:5e
$1,234,567.89 and 1.234.567,89 EUR and 12 345 678 kr
2026-11-20, 20.11.2026, 1914-1918, 2026-11-20T10:15:30+0100
ISBN 978-3-16-148410-0, 978 0 306 40615 7, 0-306-40615-2
ISSN 2049-3630, DOI 10.1000/182, 10.1016/j.cell.2020.01.001
d41d8cd98f00b204e9800998ecf8427e
e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
123e4567-e89b-12d3-a456-426614174000
4111 1111 1111 1112 and 1234 5678 9012 3456
1999 2000 2001 2002 2003 2004
0.4111111111111111 and x4111111111111111
GB29 NWBK 6016 1331 9268 18 and XX29 6016 1331 9268 19
in10 of the cases we saw that it was as good as the rest
be15 as it may, the old man went on to the village
a@b, @home, user@localhost, @decorator
ssh://git@github.com/owner/name.git and git@github.com:owner/name.git
icon@2x.png, logo@3x.jpg
libssl3@3.2.0, react@18.2.0, medium.com/@name
matrix @ other, a@ b.org, a @b.org
me@example..org, .@., @@example.org
212 555 0187 300 200 4000 512 415 2020
200 300 4000 and 1 200 300 4000 5
911-555-0123 is none, 211-555-0123 neither; 212-911-0123
phone = 0x2125550187; id2125550187; 21255501871
const n = 2125550187;
rgb(212, 255, 187); 212-55-0187
123-45-6789 is of another kind
page 123-4567, pp. 212-555
1.7976931348623157e+308, 3.14159265358979, 6.02214076e+23
40.712776, -74.005974
f(x)+442, y+4412345678901234
1-2-3-4-5-6-7-8-9-10
2-212-555-01879, 212-555-0187-44-1
1234567890123456 5000000000000000 6000000000000000
tracking 1Z 999 AA1 01 2345 6784
Chrome/91.0.44.124 Safari/5.3.7.36
kernel and firmware: firmware 2.0.0.17, driver is 27.21.14.56
192.0.2.1 and 198.51.100.7 are kept for pages like this one
§ 8.1.2.3 and rule 9.2.4.1
8.8.8.8.8 and 8.8.8.256 and 8.8.8 and a8.8.8.8
#!/usr/bin/env python3 @ 3.11
TypeScript@4.9.5, eslint@8.0.0, @types/node@18.11.9
printf("%d@%s.%s", a, b, c)
DE89 3704 0044 0532 0130 01 and de89 3704 0044 0532 0130 01
6011 1111 1111 1118, 3782 822463 10006
1,2,3,4,5,6,7,8,9
SELECT 4294967296 + 2147483648
0 0 0 0 0 0 0 0 0 0 0 0
1 2 3 4 5 6 7 8 9 10 11 12 13 14
"""

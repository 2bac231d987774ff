module runner

go 1.19

require xformd.example/xformd v0.0.0

replace xformd.example/xformd => ../../../clients/go

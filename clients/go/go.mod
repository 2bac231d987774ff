module xformd.example/xformd

go 1.19

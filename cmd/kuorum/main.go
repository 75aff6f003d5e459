// Command kuorum designs, runs, breaks and proves highly available Kubernetes
// clusters.
package main

import (
	"os"

	"kuorum/internal/cli"
)

func main() {
	os.Exit(cli.Main(cli.Process{
		Args: os.Args, Env: os.Getenv, Environ: os.Environ(),
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
	}))
}

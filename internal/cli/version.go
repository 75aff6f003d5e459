package cli

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"kuorum/internal/bundle"
	"kuorum/internal/cluster"
)

// release is kuorum's own version.
const release = "v0.1.0"

type versionInfo struct {
	APIVersion string        `json:"apiVersion"`
	Kind       string        `json:"kind"`
	Version    string        `json:"version"`
	Go         string        `json:"go"`
	Revision   string        `json:"revision,omitempty"`
	Bundle     string        `json:"bundle"` // where the parts come from
	Parts      []bundle.Part `json:"parts"`
}

func (a *app) versionCommand() *cobra.Command {
	output := "table"
	cmd := &cobra.Command{
		Use:   "version",
		Short: "kuorum's version and that of every program it carries",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return a.version(output) },
	}
	outputFlag(cmd, &output)
	return cmd
}

// versions is kuorum's version and those of the parts it finds.
func (a *app) versions() versionInfo {
	v := versionInfo{APIVersion: cluster.APIVersion, Kind: "Version", Version: release, Go: runtime.Version(), Parts: []bundle.Part{}}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v.Revision = s.Value
			}
		}
	}
	b, err := a.bundle()
	if err != nil {
		v.Bundle = "none"
	} else {
		v.Bundle, v.Parts = b.Origin, b.Manifest.Parts
	}
	return v
}

func (a *app) version(output string) error {
	v := a.versions()
	if output != "table" {
		return a.printData(v, output)
	}
	return a.table(func(w io.Writer) {
		fmt.Fprintln(w, "NAME\tVERSION")
		fmt.Fprintf(w, "kuorum\t%s\n", v.Version)
		for _, p := range v.Parts {
			fmt.Fprintf(w, "%s\t%s\n", p.Name, p.Version)
		}
	})
}

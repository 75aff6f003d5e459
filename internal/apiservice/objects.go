package apiservice

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"reflect"

	"kuorum/internal/component"
	"kuorum/internal/kubeapi"
)

// API is how an API server is asked for the two objects. Create and Update fail with
// kubeapi.ErrConflict when somebody else was quicker, Get with kubeapi.ErrNotFound
// when there is none.
type API interface {
	Get(ctx context.Context, path string, into any) error
	Create(ctx context.Context, path, body string, into any) error
	Update(ctx context.Context, path, body string) error
}

const (
	slicesPath    = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
	endpointsPath = "/api/v1/namespaces/default/endpoints"
	service       = "kubernetes" // and both objects are called as the Service is
)

// slice is the EndpointSlice (discovery.k8s.io/v1) as upstream's API servers write
// it. Kube-proxy follows it. Clusters have IPv4 only, so there is one.
type slice struct {
	APIVersion  string         `json:"apiVersion"`
	Kind        string         `json:"kind"`
	Metadata    map[string]any `json:"metadata"` // nil: there is no such object
	AddressType string         `json:"addressType"`
	Endpoints   []target       `json:"endpoints"`
	Ports       []port         `json:"ports"`
}

type target struct {
	Addresses  []string   `json:"addresses"`
	Conditions conditions `json:"conditions"`
}

type conditions struct {
	Ready bool `json:"ready"`
}

// endpoints is the object of the kind Endpoints (v1), for clients that ask for that.
type endpoints struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Metadata   map[string]any `json:"metadata"` // nil: there is no such object
	Subsets    []subset       `json:"subsets"`
}

type subset struct {
	Addresses []address `json:"addresses"`
	Ports     []port    `json:"ports"`
}

type address struct {
	IP string `json:"ip"`
}

type port struct {
	Name     string `json:"name"`
	Port     int    `json:"port"`
	Protocol string `json:"protocol"`
}

func ports() []port { return []port{{Name: "https", Port: component.PortAPIServer, Protocol: "TCP"}} }

// leading is s as it leads to addresses; all else stays as it is.
func (s slice) leading(addresses []string) slice {
	s.APIVersion, s.Kind, s.AddressType, s.Ports = "discovery.k8s.io/v1", "EndpointSlice", "IPv4", ports()
	s.Metadata = labeled(s.Metadata, "kubernetes.io/service-name", service)
	s.Endpoints = nil
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, target{[]string{a}, conditions{Ready: true}})
	}
	return s
}

// leading is e as it leads to addresses. The label keeps upstream's controller from
// making another EndpointSlice of it.
func (e endpoints) leading(addresses []string) endpoints {
	e.APIVersion, e.Kind = "v1", "Endpoints"
	e.Metadata = labeled(e.Metadata, "endpointslice.kubernetes.io/skip-mirror", "true")
	all := subset{Ports: ports()}
	for _, a := range addresses {
		all.Addresses = append(all.Addresses, address{a})
	}
	e.Subsets = []subset{all}
	return e
}

// labeled is a copy of an object's metadata, which has the resource version that
// was read, with one label more.
func labeled(metadata map[string]any, key, value string) map[string]any {
	if metadata == nil {
		metadata = map[string]any{"name": service, "namespace": "default"}
	}
	metadata = maps.Clone(metadata)
	old, _ := metadata["labels"].(map[string]any)
	labels := map[string]any{key: value}
	for k, v := range old {
		if k != key {
			labels[k] = v
		}
	}
	metadata["labels"] = labels
	return metadata
}

// list is both objects as they were read.
type list struct {
	slice     slice
	endpoints endpoints
}

// read asks for both, as a quorum has them.
func read(ctx context.Context, api API) (l list, err error) {
	if err := api.Get(ctx, slicesPath+"/"+service, &l.slice); err != nil && !errors.Is(err, kubeapi.ErrNotFound) {
		return l, err
	}
	if err := api.Get(ctx, endpointsPath+"/"+service, &l.endpoints); err != nil && !errors.Is(err, kubeapi.ErrNotFound) {
		return l, err
	}
	return l, nil
}

// addresses are where the list leads now.
func (l list) addresses() []string {
	var all []string
	for _, t := range l.slice.Endpoints {
		all = append(all, t.Addresses...)
	}
	return all
}

// leading is l as it leads to addresses.
func (l list) leading(addresses []string) list {
	return list{l.slice.leading(addresses), l.endpoints.leading(addresses)}
}

// leads tells whether both objects are as they should be for addresses.
func (l list) leads(addresses []string) bool { return reflect.DeepEqual(l, l.leading(addresses)) }

// write has both objects lead to addresses: what is so already is not written. The
// first is the one that kube-proxy follows; led tells that it was written, also
// when the second was not.
func (l list) write(ctx context.Context, api API, addresses []string) (led bool, err error) {
	want := l.leading(addresses)
	if !reflect.DeepEqual(want.slice, l.slice) {
		if err := put(ctx, api, slicesPath, l.slice.Metadata, want.slice); err != nil {
			return false, err
		}
		led = true
	}
	if !reflect.DeepEqual(want.endpoints, l.endpoints) {
		err = put(ctx, api, endpointsPath, l.endpoints.Metadata, want.endpoints)
	}
	return led, err
}

// put writes an object in place of the one with the metadata old; nil: there is none.
func put(ctx context.Context, api API, path string, old map[string]any, object any) error {
	body, err := json.Marshal(object)
	if err != nil {
		return err
	}
	if old != nil {
		return api.Update(ctx, path+"/"+service, string(body))
	}
	return api.Create(ctx, path, string(body), nil)
}

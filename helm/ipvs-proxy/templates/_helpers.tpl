{{- define "ipvs-proxy.chart" -}}
{{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "ipvs-proxy.name" -}}
{{ .Values.nameOverride | default "ipvs-proxy" }}
{{- end }}

{{- define "ipvs-proxy.fullname" -}}
{{ .Values.fullnameOverride | default .Release.Name }}
{{- end }}

{{- define "ipvs-proxy.selector" -}}
app.kubernetes.io/name: {{ include "ipvs-proxy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ipvs-proxy.labels" -}}
helm.sh/chart: {{ include "ipvs-proxy.chart" . }}
{{ include "ipvs-proxy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "ipvs-proxy.image" -}}
{{- with .Values.image -}}
{{- with $.Values.global.imageRegistry | default .registry }}{{ . }}/{{ end -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* A pod's secrets to pull images with: those of all charts, by name or as an object, and our own. Empty for none. */}}
{{- define "ipvs-proxy.imagePullSecrets" -}}
{{- $secrets := list }}
{{- range concat .Values.global.imagePullSecrets .Values.imagePullSecrets }}
{{- $secrets = append $secrets (kindIs "string" . | ternary (dict "name" .) .) }}
{{- end }}
{{- with $secrets | uniq }}{{ toYaml . }}{{ end }}
{{- end }}

{{/* Which nodes a pod may run on. */}}
{{- define "ipvs-proxy.placement" -}}
nodeSelector:
  {{- merge (dict "kubernetes.io/os" "linux") .Values.nodeSelector | toYaml | nindent 2 }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "ipvs-proxy.kubeProxyConfiguration" -}}
{{- $ours := dict
      "apiVersion" "kubeproxy.config.k8s.io/v1alpha1"
      "kind" "KubeProxyConfiguration"
      "mode" "ipvs"
      "clusterCIDR" .Values.clusterCIDR
      "detectLocalMode" .Values.detectLocalMode
      "ipvs" (dict "scheduler" .Values.scheduler)
}}
{{- if .Values.podMonitor.enabled }}
{{- $_ := set $ours "metricsBindAddress" (printf "0.0.0.0:%d" (ternary 10349 10249 (not (empty .Values.serviceProxyName)))) }}
{{- end }}
{{- mustMergeOverwrite $ours (deepCopy .Values.kubeProxyConfiguration) | toYaml }}
{{- end }}

{{/* The port of an address of the configuration: (list ADDRESS DEFAULT). An IPv6 address with a port has brackets. */}}
{{- define "ipvs-proxy.port" -}}
{{- $address := first . | default "" }}
{{- if regexMatch `^([^:]*|\[.*\]):[0-9]+$` $address }}{{ regexFind "[0-9]+$" $address }}{{ else }}{{ last . }}{{ end }}
{{- end }}

{{/* The configuration that the chart writes; empty where it writes none. */}}
{{- define "ipvs-proxy.ownConfiguration" -}}
{{- if not .Values.existingKubeProxyConfigMap }}{{ include "ipvs-proxy.kubeProxyConfiguration" . }}{{ end }}
{{- end }}

{{/* Where the agent answers on its node: the loopback, which alone is told of Services. Two colons make an IPv6 address. */}}
{{- define "ipvs-proxy.agent" -}}
{{- $configuration := include "ipvs-proxy.ownConfiguration" . | fromYaml }}
{{- $address := $configuration.metricsBindAddress | default $configuration.bindAddress | default "" }}
{{- regexMatch ":.*:" $address | ternary "[::1]" "127.0.0.1" }}:{{ include "ipvs-proxy.port" (list $configuration.metricsBindAddress (ternary 10349 10249 (and (not (empty .Values.serviceProxyName)) (empty $configuration.metricsBindAddress)))) }}
{{- end }}

{{/* What both containers have: how to be called, who and where they are, and their files. */}}
{{- define "ipvs-proxy.container" -}}
image: {{ include "ipvs-proxy.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [ipvs-proxy]
env:
  - name: NODE_NAME
    valueFrom:
      fieldRef:
        fieldPath: spec.nodeName
  {{- with .Values.apiServer }}
  {{- if .host }}
  - name: KUBERNETES_SERVICE_HOST
    value: {{ .host | quote }}
  - name: KUBERNETES_SERVICE_PORT
    value: {{ .port | quote }}
  {{- end }}
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "ipvs-proxy.configDirectory" -}}
{{- /* kubeadm's config.conf names its kubeconfig by this path. */ -}}
{{ if .Values.existingKubeProxyConfigMap }}/var/lib/kube-proxy{{ else }}/etc/ipvs-proxy{{ end }}
{{- end }}

{{- define "ipvs-proxy.arguments" -}}
- --config={{ include "ipvs-proxy.configDirectory" . }}/{{ if .Values.existingKubeProxyConfigMap }}config.conf{{ else }}config.yaml{{ end }}
- --hostname-override=$(NODE_NAME)
{{- with .Values.serviceProxyName }}
- --service-proxy-name={{ . }}
{{- end }}
{{- if ne .Values.packetFilter "auto" }}
- --packet-filter={{ .Values.packetFilter }}
{{- end }}
{{- with .Values.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}
